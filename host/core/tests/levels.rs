//! The level of the state: which commands it admits, and how it is raised.
#![allow(clippy::unwrap_used)]

use annulus_core::ids::{ClusterId, Digest, NodeId, NodeUid};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{ClusterState, Command, Machine, Member, MemberStatus, Outcome, Refusal, level_of};
use annulus_core::version::LEVEL;

fn member(number: u8) -> Member {
    Member {
        id: NodeId(0),
        uid: NodeUid([number; 16]),
        name: format!("n{number}@host"),
        listen: String::new(),
        http: String::new(),
        zone: None,
        weight: 1,
        status: MemberStatus::Joining,
        staged: false,
        banned: false,
        key: None,
    }
}

/// Create a cluster at this level, with the founder and a node that joins.
fn cluster(level: u32) -> (Machine, NodeId) {
    let mut machine = Machine::default();
    let found = Command::Found {
        cluster: ClusterId([1; 16]),
        ring_size: RingSize::try_from(8).unwrap(),
        width: 3,
        founder: member(1),
        authority: String::new(),
        authority_key: String::new(),
        level,
    };
    assert_eq!(machine.apply(1, &found), Outcome::Done);
    let token = Digest([7; 32]);
    machine.apply(2, &Command::IssueToken { token, now_ms: 0, expires_ms: 10, uses: None });
    let key = (level >= 6).then_some(Digest([2; 32]));
    let joiner = Member { key, ..member(2) };
    let admitted = machine.apply(3, &Command::Admit { member: joiner, token, now_ms: 1 });
    assert_eq!(admitted, Outcome::Admitted(NodeId(3)));
    (machine, NodeId(3))
}

#[test]
fn a_newer_command_is_refused_until_the_level_is_raised() {
    let (mut machine, node) = cluster(1);
    let newer = Command::Down { node: NodeId(0) };
    assert_eq!(level_of(&newer), 2);
    let refused = machine.apply(4, &newer);
    assert_eq!(refused, Outcome::Refused(Refusal::Level { needs: 2, level: 1, behind: Vec::new() }));
    // Commands that the first build knows still work.
    assert_eq!(machine.apply(5, &Command::Joined { node }), Outcome::Done);
    let raise = Command::Raise { level: 2, known: vec![NodeId(0), node] };
    assert_eq!(machine.apply(6, &raise), Outcome::Done);
    assert_eq!(machine.apply(7, &newer), Outcome::Done);
}

#[test]
fn a_raise_that_misses_a_member_or_raises_nothing_is_refused() {
    let (mut machine, node) = cluster(1);
    for (known, level) in [(vec![NodeId(0)], 2), (vec![NodeId(0), node], 1), (vec![NodeId(0), node], 0)] {
        let refused =
            machine.apply(machine.state.as_ref().unwrap().applied + 1, &Command::Raise { level, known });
        assert_eq!(refused, Outcome::Refused(Refusal::CannotRaise(level)));
        assert_eq!(machine.state.as_ref().unwrap().level, 1);
    }
    // A removed node need not be among those that know the level.
    machine.apply(20, &Command::Removed { node });
    assert_eq!(machine.apply(21, &Command::Raise { level: 2, known: vec![NodeId(0)] }), Outcome::Done);
}

#[test]
fn a_cluster_founded_by_this_build_has_its_level_and_a_state_without_one_has_level_1() {
    assert_eq!(cluster(LEVEL).0.state.unwrap().level, LEVEL);
    let state = cluster(LEVEL).0.state.unwrap();
    let mut bytes = Vec::new();
    ciborium::into_writer(&state, &mut bytes).unwrap();
    let mut value: ciborium::Value = ciborium::from_reader(&bytes[..]).unwrap();
    let fields = value.as_map_mut().unwrap();
    fields.retain(|(key, _)| key.as_text() != Some("level"));
    let older: ClusterState = value.deserialized().unwrap();
    assert_eq!(older, ClusterState { level: 1, ..state });
}
