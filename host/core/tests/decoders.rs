//! Arbitrary and damaged bytes for the decoders of this package.
#![allow(clippy::unwrap_used)]

use annulus_core::address::HostPort;
use annulus_core::codec::{decode, encode};
use annulus_core::description::Description;
use annulus_core::handoff::message::{ToReceiver, ToSender};
use annulus_core::ids::{ClusterId, Digest, ModuleUid, NodeId, NodeUid, RequestId};
use annulus_core::item::Item;
use annulus_core::junk::{Target, attack, done};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::request::{Count, Demands, ErrorCode, RequestError};
use annulus_core::state::{ClusterState, Command, Machine, Member, MemberStatus};
use annulus_core::wire::{Call, PageAnswer, PageRequest, decode_answer, encode_answer};

fn member(uid: u8) -> Member {
    Member {
        id: NodeId(0),
        uid: NodeUid([uid; 16]),
        name: format!("n{uid}@h"),
        listen: "127.0.0.1:1".into(),
        http: "127.0.0.1:2".into(),
        zone: Some("z".into()),
        weight: 1,
        status: MemberStatus::Joining,
        staged: false,
        banned: false,
        key: Some(Digest([uid; 32])),
    }
}

fn commands() -> Vec<Command> {
    let token = Digest([7; 32]);
    vec![
        Command::Found {
            cluster: ClusterId([1; 16]),
            ring_size: RingSize::try_from(8).unwrap(),
            width: 3,
            founder: member(1),
            authority: "certificate".into(),
            authority_key: String::new(),
            level: annulus_core::version::LEVEL,
        },
        Command::IssueToken { token, now_ms: 0, expires_ms: 1000, uses: Some(3) },
        Command::Admit { member: member(2), token, now_ms: 1 },
        Command::Joined { node: NodeId(3) },
        Command::Rebalance { base: 1, table: vec![vec![NodeId(3)]; 8] },
    ]
}

fn state() -> ClusterState {
    let mut machine = Machine::default();
    for (at, command) in commands().iter().enumerate() {
        machine.apply(at as u64 + 1, command);
    }
    machine.state.unwrap()
}

fn description() -> Description {
    Description {
        name: "kv".into(),
        version: "1".into(),
        doc: "A store.".into(),
        commands: Vec::new(),
        config: Vec::new(),
        writes_formats: vec![1],
        reads_formats: vec![1, 2],
        exported: Default::default(),
    }
}

/// Read a state as one from another node: what passes the check must not panic when it is used.
fn use_state(bytes: &[u8]) {
    let Ok(state) = decode::<ClusterState>(bytes) else { return };
    if state.check_sound().is_err() {
        return;
    }
    for (id, partition) in state.ring.iter() {
        let _ = (partition.owner(), state.ring.partition(id).target().len());
    }
    let _ = (state.standing(NodeUid([1; 16])), state.member_by_name("n1@h"));
}

#[test]
fn no_bytes_make_a_decoder_panic() {
    let call = Call {
        module: ModuleUid(1),
        partition: PartitionId(2),
        version: 3,
        id: RequestId([4; 16]),
        deadline_ms: 5,
        command: "get",
        key: Some(b"k"),
        args: b"\xa1\x63key\x61k",
        page: Some(PageRequest { after: Some(b"x"), items: 10, bytes: 100 }),
        demands: Demands { r: Some(Count::Number(2)), w: Some(Count::All), strict: true },
    };
    let error = RequestError::not_applied(ErrorCode::NotReady, "no");
    let item = Item { key: b"k".to_vec(), sort: Vec::new(), value: b"v".to_vec(), deleted: false };
    let items = ToReceiver::Items { seq: 1, module: ModuleUid(1), items: vec![item] };
    attack(&[
        Target {
            name: "Command",
            valid: commands().iter().map(|command| encode(command).unwrap()).collect(),
            decode: |bytes| done(decode::<Command>(bytes)),
        },
        Target { name: "ClusterState", valid: vec![encode(&state()).unwrap()], decode: use_state },
        Target {
            name: "wire::Call",
            valid: vec![call.encode()],
            decode: |bytes| done(Call::decode(bytes).map(|call| call.args.len())),
        },
        Target {
            name: "wire::decode_answer",
            valid: vec![encode_answer(&Ok(b"reply")), encode_answer(&Err(error))],
            decode: |bytes| done(decode_answer(bytes).map(<[u8]>::len)),
        },
        Target {
            name: "PageAnswer",
            valid: vec![PageAnswer::new(vec![vec![1]], Some(vec![2])).encode()],
            decode: |bytes| done(PageAnswer::decode(bytes)),
        },
        Target {
            name: "Description",
            valid: vec![description().to_cbor()],
            decode: |bytes| done(Description::from_cbor(bytes).map(|description| description.to_cbor())),
        },
        Target {
            name: "ToReceiver",
            valid: vec![encode(&items).unwrap()],
            decode: |bytes| done(decode::<ToReceiver>(bytes)),
        },
        Target {
            name: "ToSender",
            valid: vec![encode(&ToSender::Ack { seq: 7 }).unwrap()],
            decode: |bytes| done(decode::<ToSender>(bytes)),
        },
        Target {
            name: "HostPort, ids, Count, Mutant",
            valid: vec![b"host:80".to_vec(), b"[::1]:80".to_vec(), "ab".repeat(32).into_bytes()],
            decode: |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let _ = (text.parse::<HostPort>(), text.parse::<Digest>(), text.parse::<NodeUid>());
                let _ = (text.parse::<Count>(), text.parse::<annulus_core::mutants::Mutant>());
            },
        },
    ]);
}
