//! The state that all connections of one node share.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use annulus_core::ids::{BootId, ClusterId, Digest, NodeUid, Start};
use annulus_core::state::Lineage;
use annulus_core::version::{Range, Speaks};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::admins::AdminSlots;
use super::close::Close;
use super::handshakes::Handshakes;
use super::hello::{self, Hello, Role};
use super::identity::TlsIdentity;
use super::inbound::{Event, Outlet};
use super::peer::PeerEntry;
use super::udp::QuietSocket;
use super::wire::{ClientConfig, Credentials, Endpoint, Net, Proof};

pub(super) struct Shared {
    /// `None` once the transport is closing. The last clone keeps the port in use.
    pub endpoint: RwLock<Option<Endpoint>>,
    pub local_addr: SocketAddr,
    pub net: Net,
    /// The socket of `endpoint`, which alone keeps it open.
    pub socket: Weak<QuietSocket>,
    pub runtime: Handle,
    pub outlet: Arc<Outlet>,
    pub cluster: ClusterId,
    pub uid: NodeUid,
    pub boot: BootId,
    pub start: Start,
    pub lineage: Mutex<Lineage>,
    /// The versions sent in every hello.
    pub speaks: Speaks,
    /// The cluster's state level; `None` until it is known.
    pub level: Mutex<Option<u32>>,
    /// The source of `credentials`; locked while they are rebuilt.
    pub trust: Mutex<Trust>,
    pub credentials: ArcSwap<Credentials>,
    pub tuning: Arc<quinn::TransportConfig>,
    pub handshakes: Arc<Handshakes>,
    pub joiners: Arc<Semaphore>,
    pub admins: Arc<AdminSlots>,
    pub peers: RwLock<BTreeMap<NodeUid, Arc<PeerEntry>>>,
    pub banned: RwLock<HashSet<NodeUid>>,
    /// Nodes that have left the cluster.
    pub left: RwLock<HashSet<NodeUid>>,
    /// The members of the cluster, with the digest of each one's key if the table has it; `None` until they are
    /// known.
    pub members: RwLock<Option<HashMap<NodeUid, Option<Digest>>>>,
}

/// This node's certificate and the authorities that it trusts.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Trust {
    pub identity: TlsIdentity,
    pub authorities: Vec<String>,
}

impl Shared {
    /// Return the entry of a peer, which is created if it is missing.
    pub(super) fn peer(&self, uid: NodeUid) -> Arc<PeerEntry> {
        if let Some(peer) = self.peers.read().get(&uid) {
            return peer.clone();
        }
        self.peers.write().entry(uid).or_insert_with(|| Arc::new(PeerEntry::new(uid, self.uid < uid))).clone()
    }

    pub(super) fn is_banned(&self, uid: NodeUid) -> bool {
        self.banned.read().contains(&uid)
    }

    fn has_left(&self, uid: NodeUid) -> bool {
        self.left.read().contains(&uid)
    }

    /// Refuse a peer whose certificate names a member and has another key than the member.
    pub(super) fn check_key(&self, uid: NodeUid, proof: &Proof) -> Result<(), (Close, String)> {
        let known = self.members.read().as_ref().and_then(|members| *members.get(&uid)?);
        if known.is_none_or(|key| proof.key() == Some(key)) {
            return Ok(());
        }
        Err((Close::Identity, format!("the certificate names node {uid}, and its key is another one")))
    }

    /// Refuse a node that has left, was removed by force, or is not in this lineage (R20). A removal belongs to the
    /// lineage that made it: it applies to nodes of that lineage and older ones, not to a node that was recovered
    /// into a newer one. A node that is not known here passes: it may have been admitted by an entry that this node
    /// lacks. Whoever serves its requests decides on each.
    pub(super) async fn check_removed(&self, peer: &Hello) -> Result<(), (Close, String)> {
        let own = *self.lineage.lock();
        let has_left = self.has_left(peer.uid);
        if !has_left && !self.is_banned(peer.uid) {
            let is_known = self.members.read().as_ref().is_none_or(|members| members.contains_key(&peer.uid));
            if !is_known && peer.lineage < own {
                let why = "the cluster was recovered, and does not have this node as a member";
                return Err((Close::Outside, why.to_owned()));
            }
            return Ok(());
        }
        Err(match peer.lineage.cmp(&own) {
            Ordering::Equal if has_left => (Close::Removed, "this node has left the cluster".to_owned()),
            Ordering::Equal => (Close::Removed, "this node was removed from the cluster".to_owned()),
            Ordering::Less => {
                (Close::Outside, "the cluster was recovered, and has removed this node".to_owned())
            }
            Ordering::Greater => {
                self.outlet.send(Event::Rival(peer.uid)).await;
                let why = "this node was removed here and recovered elsewhere: the cluster has two histories";
                (Close::Rival, why.to_owned())
            }
        })
    }

    /// Refuse a node that does not support the cluster's level. A node that has left may not have heard of it: with
    /// a build that cannot read the newer entries it never will by the log, and is told instead.
    pub(super) fn check_level(
        &self,
        uid: NodeUid,
        levels: Range,
        level: Option<u32>,
    ) -> Result<(), (Close, String)> {
        hello::check_level(uid, levels, level).map_err(|refusal| {
            if self.has_left(uid) {
                (Close::Removed, "this node has left the cluster".to_owned())
            } else {
                refusal
            }
        })
    }

    /// Return the endpoint; `None` once the transport is closing.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.read().clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.endpoint.read().is_none()
    }

    /// Return true if a node is, or was last, at an address.
    pub(super) fn knows_address(&self, address: IpAddr) -> bool {
        let peers = self.peers.read();
        peers
            .values()
            .any(|peer| peer.addresses().any(|known| known.to_canonical() == address.to_canonical()))
    }

    /// Return the hello to a peer without a certificate. It is told which cluster and which node it has reached, which
    /// the certificate of this node says as well, and nothing else.
    pub(super) fn hello_to_stranger(&self) -> Hello {
        Hello {
            speaks: Speaks { levels: Speaks::FIRST.levels, ..self.speaks },
            lineage: Lineage::default(),
            boot: BootId([0; 16]),
            start: None,
            ..self.hello()
        }
    }

    /// Return this node's hello.
    pub(super) fn hello(&self) -> Hello {
        Hello {
            speaks: self.speaks,
            role: Role::Node,
            cluster: self.cluster,
            lineage: *self.lineage.lock(),
            uid: self.uid,
            boot: self.boot,
            // The hello of the first build lacks this field.
            start: (self.speaks != Speaks::FIRST).then_some(self.start),
        }
    }

    pub(super) fn client_config(&self) -> ClientConfig {
        self.credentials.load().client(self.tuning.clone())
    }
}
