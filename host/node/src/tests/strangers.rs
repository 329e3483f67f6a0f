//! Peers whose certificate the cluster's authority has signed, and which are not members.

use std::collections::BTreeMap;
use std::sync::Weak;

use annulus_core::ids::NodeUid;
use annulus_core::state::{Change, Lineage};
use annulus_core::wire::decode_answer;
use annulus_transport::client::Client;
use annulus_transport::identity::{Authority, NodeKey};
use annulus_transport::kind::{self, Way};
use annulus_transport::{CallError, Lane, PeerAddr};
use bytes::Bytes;

use super::*;

/// A peer that speaks the protocol between nodes.
struct Peer {
    transport: Transport,
    /// Dropped with the peer, so that events wait meanwhile.
    _inbound: Inbound,
}

impl Peer {
    /// Start a peer with the uid and the identity, in the lineage.
    fn new(of: &Running, uid: NodeUid, identity: TlsIdentity, lineage: Lineage) -> Self {
        let state = &of.view().state;
        let config = TransportConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            cluster: state.cluster,
            lineage,
            uid,
            boot: BootId(annulus_ground::random()),
            start: annulus_core::ids::Start { number: 1 << 63, id: 1 },
            identity,
            authorities: state.authorities.clone(),
        };
        let nobody: Weak<Router> = Weak::new();
        let (transport, inbound) = Transport::bind(config, nobody).unwrap();
        Self { transport, _inbound: inbound }
    }

    async fn call(&self, to: &Running, lane: Lane, kind: u8, payload: &[u8]) -> Result<Bytes, CallError> {
        let peer = PeerAddr { uid: to.life.cluster.uid(), addr: to.life.address };
        let deadline = Instant::now() + Duration::from_secs(5);
        self.transport.call(&peer, lane, kind, Bytes::copy_from_slice(payload), deadline).await
    }

    /// Open a stream of a kind, and return true if the node sends anything on it.
    async fn is_served(&self, to: &Running, kind: u8, header: Bytes) -> bool {
        let peer = PeerAddr { uid: to.life.cluster.uid(), addr: to.life.address };
        let opened = self.transport.open_bulk(&peer, kind, header, soon()).await;
        let mut stream = opened.unwrap();
        matches!(tokio::time::timeout(Duration::from_secs(4), stream.recv.frame()).await, Ok(Ok(Some(_))))
    }
}

fn authority_of(node: &Running) -> Authority {
    node.life.cluster.authority().unwrap()
}

fn identity_of(node: &Running) -> TlsIdentity {
    let read = |name| std::fs::read_to_string(node.config.data.join(name)).unwrap();
    TlsIdentity { cert_pem: read("node.pem"), key_pem: read("node.key") }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Valid payloads of requests that would be answered if a member sent them.
fn payload(kind: u8, uid: NodeUid) -> Vec<u8> {
    use annulus_core::codec::encode;
    let fields =
        |fields: &[(&str, u64)]| encode(&fields.iter().copied().collect::<BTreeMap<_, _>>()).unwrap();
    match kind {
        kind::PROPOSE => encode(&Command::ClearStaged).unwrap(),
        kind::FETCH_STATE => fields(&[("newer_than", 0)]),
        kind::CALL => {
            let call = annulus_core::wire::Call {
                module: annulus_core::ids::ModuleUid(1),
                partition: annulus_core::keyspace::PartitionId(0),
                version: 0,
                id: annulus_core::ids::RequestId([1; 16]),
                deadline_ms: 1000,
                command: "get",
                key: Some(b"k"),
                args: b"",
                page: None,
                demands: annulus_core::request::Demands::default(),
            };
            call.encode()
        }
        kind::STARTS => fields(&[("number", u64::MAX), ("id", 1)]),
        _ => encode(&uid).unwrap(),
    }
}

#[test]
fn a_stranger_that_the_authority_has_signed_is_served_by_no_kind_of_message() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let mut second = dirs.start("b");
    join(&mut second, &first);
    // The state must not change by itself below.
    settle(&first);
    block(first.life.cluster.propose(deploy("kv"), soon())).unwrap();
    let uid = NodeUid([7; 16]);
    let runtime = runtime();
    let _in_it = runtime.enter();
    let peer = Peer::new(&first, uid, authority_of(&first).sign_node(uid).unwrap(), Lineage::default());
    let before = first.view();
    for (kind, name, way) in kind::ALL {
        let (kind, payload) = (*kind, payload(*kind, uid));
        match way {
            // An echo tells the peer what it has said.
            Way::Lane => continue,
            Way::Data => {
                let answer = runtime.block_on(peer.call(&first, Lane::Data, kind, &payload));
                // Only a command has an answer that can say why.
                if kind == kind::REPLICA {
                    assert!(matches!(answer, Err(CallError::NoAnswer)), "{name}: {answer:?}");
                    continue;
                }
                let answer = answer.unwrap();
                let refused = decode_answer(&answer).unwrap_err();
                assert!(refused.message.contains("not, or no longer, a member"), "{name}: {refused}");
            }
            Way::Control => {
                let answer = runtime.block_on(peer.call(&first, Lane::Control, kind, &payload));
                let allowed = kind == kind::ANNOUNCE;
                assert!(matches!(answer, Err(CallError::NoAnswer)) || allowed, "{name}: {answer:?}");
            }
            // The join stream is open to everybody, and asks for a token; that of operators needs a certificate of one.
            Way::Bulk => {
                let header = Bytes::from(payload);
                let is_served = runtime.block_on(peer.is_served(&first, kind, header));
                assert!(!is_served, "{name}");
            }
        }
    }
    let after = first.view();
    assert_eq!((after.index(), &after.state), (before.index(), &before.state));
    assert!(
        runtime.block_on(async { second.life.cluster.propose(Command::ClearStaged, soon()).await }).is_ok()
    );
}

#[test]
fn a_node_that_left_is_told_so_and_gets_nothing_else() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let (uid, identity) = (third.life.cluster.uid(), identity_of(&third));
    block(third.life.cluster.leave(None, soon())).unwrap();
    give_away(&first);
    let (reason, _) = third.end();
    assert_eq!(reason.unwrap(), StopReason::Removed);
    let runtime = runtime();
    let _in_it = runtime.enter();
    for lineage in [Lineage::default(), Lineage { number: 1 << 62, id: 0 }] {
        let peer = Peer::new(&first, uid, identity.clone(), lineage);
        for node in [&first, &second] {
            node.see("that it has left", |view| !view.has(uid));
            let refused = runtime.block_on(peer.call(node, Lane::Data, kind::ECHO, b"")).unwrap_err();
            let said = if lineage == Lineage::default() { "has left the cluster" } else { "two histories" };
            assert!(matches!(&refused, CallError::Unreachable(why) if why.contains(said)), "{refused}");
        }
    }
    assert!(first.view().serves() && second.view().serves());
}

#[test]
fn a_node_that_was_removed_is_told_so_and_gets_nothing_else() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let (uid, identity, node) = (third.life.cluster.uid(), identity_of(&third), third.life.cluster.me());
    third.stop();
    block(first.life.cluster.change(Change::Remove { node }, soon())).unwrap();
    let runtime = runtime();
    let _in_it = runtime.enter();
    let peer = Peer::new(&first, uid, identity, Lineage::default());
    for node in [&first, &second] {
        node.see("that it was removed", |view| !view.has(uid));
        let refused = runtime.block_on(peer.call(node, Lane::Data, kind::ECHO, b"")).unwrap_err();
        let said = |why: &String| why.contains("was removed from the cluster");
        assert!(matches!(&refused, CallError::Unreachable(why) if said(why)), "{refused}");
    }
}

#[test]
fn a_certificate_with_the_name_of_a_member_and_another_key_is_refused() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let mut second = dirs.start("b");
    join(&mut second, &first);
    let uid = second.life.cluster.uid();
    let runtime = runtime();
    let _in_it = runtime.enter();
    let key = NodeKey::generate().unwrap();
    let cert_pem = authority_of(&first).sign_node_key(uid, &key.public_key).unwrap();
    let peer = Peer::new(&first, uid, key.with_certificate(cert_pem), Lineage::default());
    let refused = runtime.block_on(peer.call(&first, Lane::Data, kind::ECHO, b"")).unwrap_err();
    assert!(
        matches!(&refused, CallError::Unreachable(why) if why.contains("its key is another")),
        "{refused}"
    );
    // The member lives on.
    runtime.block_on(second.life.cluster.propose(Command::ClearStaged, soon())).unwrap();
}

#[test]
fn a_lineage_that_a_peer_only_names_stops_nothing() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let runtime = runtime();
    let _in_it = runtime.enter();
    for (number, uid) in [(1, 7), (1 << 62, 8), (u64::MAX, 9)] {
        let uid = NodeUid([uid; 16]);
        let identity = authority_of(&first).sign_node(uid).unwrap();
        let peer = Peer::new(&first, uid, identity, Lineage { number, id: 1 });
        runtime.block_on(peer.call(&first, Lane::Data, kind::ECHO, b"")).unwrap();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            assert!(first.view().serves() && !first.view().superseded);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    block(first.life.cluster.propose(deploy("kv"), soon())).unwrap();
}

/// The certificates that somebody may have who is not a member, other than those of the tests above, and what is said
/// of each.
#[test]
fn every_certificate_but_a_members_own_is_refused_before_any_message() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let other = dirs.start("b");
    let uid = NodeUid([7; 16]);
    let cluster = first.view().state.cluster;
    let lookalike = Authority::create(cluster).unwrap();
    let runtime = runtime();
    let _in_it = runtime.enter();
    let table = [
        ("another node's", authority_of(&first).sign_node(NodeUid([8; 16])).unwrap(), "is not that of node"),
        ("an operator's", authority_of(&first).sign_admin().unwrap(), "is not that of node"),
        ("another cluster's node's", authority_of(&other).sign_node(uid).unwrap(), ""),
        ("signed by an authority with the same name", lookalike.sign_node(uid).unwrap(), ""),
        ("that of the node itself", identity_of(&first), "is not that of node"),
    ];
    for (whose, identity, said) in table {
        let peer = Peer::new(&first, uid, identity, Lineage::default());
        for lane in [Lane::Data, Lane::Control] {
            let refused = runtime.block_on(peer.call(&first, lane, kind::ECHO, b"")).unwrap_err();
            assert!(
                matches!(&refused, CallError::Unreachable(why) if why.contains(said)),
                "{whose}: {refused}"
            );
        }
    }
    // As operators: the node's own certificate, and those of other clusters.
    let authorities = first.view().state.authorities.clone();
    let operators = [
        ("the node's", identity_of(&first), "operator's certificate is needed"),
        ("another cluster's operator's", authority_of(&other).sign_admin().unwrap(), ""),
        ("signed by an authority with the same name", lookalike.sign_admin().unwrap(), ""),
    ];
    for (whose, identity, said) in operators {
        let limit = Duration::from_secs(5);
        let client = Client::connect(first.life.address, Some(identity), authorities.clone(), limit);
        let refused = runtime.block_on(client).err().unwrap();
        assert!(refused.to_string().contains(said), "{whose}: {refused}");
    }
}
