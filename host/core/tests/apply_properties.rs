//! Any log at all keeps the state's invariants, and gives the same state everywhere.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use annulus_core::ids::{ClusterId, Digest, NodeId, NodeUid, TransferId};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::state::{
    ClusterState, Command, Machine, Member, MemberStatus, Outcome, Release, StorageKind,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

fn member(name: u8, uid: u8, weight: u32) -> Member {
    Member {
        id: NodeId(3),
        uid: NodeUid([uid; 16]),
        name: format!("n{name}@h"),
        listen: "127.0.0.1:1".into(),
        http: "127.0.0.1:2".into(),
        zone: None,
        weight,
        status: MemberStatus::Removed,
    }
}

fn found() -> Command {
    Command::Found {
        cluster: ClusterId([1; 16]),
        ring_size: RingSize::try_from(8).unwrap(),
        width: 3,
        founder: member(0, 0, 1),
        authority: "certificate".into(),
        authority_key: "key".into(),
    }
}

/// A command that is often, but not always, one that fits: numbers stand for something of the
/// state where there is such a thing.
#[derive(Clone, Debug)]
enum Step {
    Command(Box<Command>),
    /// The table that the claim wants, or that one with a set replaced.
    Claim {
        stale: bool,
        odd: Option<(u8, Vec<u8>)>,
    },
    /// What is pending in these partitions, some under a wrong id.
    Flip(Vec<(u8, bool)>),
    Cancel(u8, bool),
    Node(u8, u8),
    Deploy {
        name: u8,
        n: Option<u8>,
        r: Option<u8>,
        w: Option<u8>,
        stale: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0u8..6;
    let token = (0u8..3, 0u64..50, 20u64..200).prop_map(|(token, now_ms, expires_ms)| Command::IssueToken {
        token: Digest([token; 32]),
        now_ms,
        expires_ms,
    });
    let admit = (small.clone(), small.clone(), 0u8..3, 0u64..50, 0u32..3).prop_map(
        |(name, uid, token, now_ms, weight)| Command::Admit {
            member: member(name, uid, weight),
            token: Digest([token; 32]),
            now_ms,
        },
    );
    let name = (0u8..3).prop_map(|name| format!("m{name}"));
    let module = (name, prop::bool::weighted(0.7))
        .prop_map(|(name, roll)| if roll { Command::Rollback { name } } else { Command::Undeploy { name } });
    let plain = prop_oneof![1 => Just(found()), 6 => token, 10 => admit, 6 => module];
    let odd = prop::option::weighted(0.3, (0u8..8, prop::collection::vec(small.clone(), 0..5)));
    let quorum = || prop::option::of(0u8..5);
    prop_oneof![
        4 => plain.prop_map(|command| Step::Command(Box::new(command))),
        5 => (prop::bool::weighted(0.1), odd).prop_map(|(stale, odd)| Step::Claim { stale, odd }),
        5 => prop::collection::vec((0u8..10, prop::bool::weighted(0.1)), 0..16).prop_map(Step::Flip),
        2 => (0u8..9, prop::bool::weighted(0.3)).prop_map(|(partition, wrong)| Step::Cancel(partition, wrong)),
        5 => (prop::sample::select(vec![0u8, 0, 1, 2, 2, 3]), small).prop_map(|(what, node)| Step::Node(what, node)),
        2 => (0u8..4, quorum(), quorum(), quorum(), prop::bool::weighted(0.2))
            .prop_map(|(name, n, r, w, stale)| Step::Deploy { name, n, r, w, stale }),
    ]
}

impl Step {
    fn command(&self, state: Option<&ClusterState>) -> Command {
        let Some(state) = state else {
            return match self {
                Self::Command(command) => (**command).clone(),
                _ => found(),
            };
        };
        let node = |at: &u8| state.members.keys().nth(usize::from(*at)).copied().unwrap_or(NodeId(999));
        let pending = |at: &u8, wrong: bool| {
            let partition = PartitionId(u16::from(*at));
            let id = state.pending_of(partition).map_or(TransferId(1), |transfer| transfer.id);
            (partition, if wrong { TransferId(id.0 + 1) } else { id })
        };
        match self {
            Self::Command(command) => (**command).clone(),
            Self::Claim { stale, odd } => {
                let mut table = state.claimed_table();
                if let Some((at, set)) = odd {
                    table[usize::from(*at)] = set.iter().map(node).collect();
                }
                Command::Rebalance { base: state.ring.epoch - u64::from(*stale), table }
            }
            Self::Flip(which) => {
                Command::Flip { transfers: which.iter().map(|(at, wrong)| pending(at, *wrong)).collect() }
            }
            Self::Cancel(at, wrong) => {
                let under_way = state.ring.transfers().nth(usize::from(*at) % 4);
                let at = under_way.map_or(*at, |(partition, _)| partition.0 as u8);
                let (partition, transfer) = pending(&at, *wrong);
                Command::Cancel { partition, transfer }
            }
            Self::Node(0, at) => Command::Joined { node: node(at) },
            Self::Node(1, at) => Command::Leave { node: node(at) },
            Self::Node(2, at) => Command::Removed { node: node(at) },
            Self::Node(_, at) => {
                Command::Moved { node: node(at), listen: format!("h:{at}"), http: "h:9".into() }
            }
            Self::Deploy { name, n, r, w, stale } => {
                let name = format!("m{name}");
                let running = state.module_by_name(&name).map_or(0, |module| module.current.version);
                Command::Deploy {
                    name,
                    n: *n,
                    r: *r,
                    w: *w,
                    storage: Some(StorageKind::Durable),
                    config: None,
                    release: Release { version: 0, digest: Digest([9; 32]), bytes: 1, description: vec![] },
                    base_version: running + u64::from(*stale),
                }
            }
        }
    }
}

/// What holds of every state.
fn check(state: &ClusterState) {
    let live: Vec<&Member> = state.live_members().collect();
    let names: BTreeSet<&str> = live.iter().map(|member| member.name.as_str()).collect();
    let uids: BTreeSet<NodeUid> = state.members.values().map(|member| member.uid).collect();
    assert_eq!((names.len(), uids.len()), (live.len(), state.members.len()), "names and uids are unique");
    assert!(live.iter().any(|member| member.status == MemberStatus::Member), "nobody is left");
    assert!(live.iter().all(|member| member.weight > 0));
    assert!(state.members.iter().all(|(id, member)| *id == member.id && member.id.0 <= state.applied));

    assert_eq!(state.ring.partitions.len(), usize::from(state.ring.size.get()));
    assert!(state.ring.epoch <= state.applied);
    for (id, partition) in state.ring.iter() {
        let target = partition.pending.as_ref().map_or(&[][..], |transfer| &transfer.target);
        for set in [&partition.replicas[..], target] {
            let distinct: BTreeSet<_> = set.iter().collect();
            assert!(distinct.len() == set.len() && set.len() <= usize::from(state.width), "{id:?}: {set:?}");
            assert!(set.iter().all(|node| state.member(*node).is_some()), "{id:?}: {set:?} has a stranger");
        }
        assert!(!partition.replicas.is_empty() && partition.version <= state.ring.epoch);
        if let Some(transfer) = &partition.pending {
            assert!(!transfer.target.is_empty() && transfer.target != partition.replicas);
            assert!(transfer.id.0 <= state.ring.epoch && transfer.id > partition.made_by);
        }
    }

    let names: BTreeSet<&str> = state.modules.values().map(|module| module.name.as_str()).collect();
    assert_eq!(names.len(), state.modules.len(), "module names are unique");
    for (uid, module) in &state.modules {
        assert_eq!(*uid, module.uid);
        assert!((1..=state.width).contains(&module.n), "n = {}", module.n);
        assert!((1..=module.n).contains(&module.r) && (1..=module.n).contains(&module.w));
        assert!(module.previous.as_ref().is_none_or(|old| old.version + 1 == module.current.version));
        assert!(uid.0 <= module.changed && module.changed <= state.applied);
    }
}

/// What holds of every change.
fn check_change(before: &ClusterState, command: &Command, outcome: &Outcome, after: &ClusterState) {
    let refused = matches!(outcome, Outcome::Refused(_));
    if refused {
        assert_eq!(
            ClusterState { applied: after.applied, ..before.clone() },
            *after,
            "{command:?} was refused"
        );
    }
    assert!(before.ring.epoch <= after.ring.epoch);
    for ((id, old), (_, new)) in before.ring.iter().zip(after.ring.iter()) {
        assert!(old.version <= new.version && old.made_by <= new.made_by);
        if old.replicas != new.replicas {
            let Command::Flip { transfers } = command else { panic!("{command:?} changed {id:?}") };
            let pending = old.pending.as_ref().unwrap();
            assert!(transfers.contains(&(id, pending.id)) && new.replicas == pending.target);
            assert_eq!((new.version, new.made_by), (after.applied, pending.id));
        } else {
            assert_eq!(old.version, new.version);
        }
        if old != new {
            assert_eq!(after.ring.epoch, after.applied, "{command:?}");
        }
        // Never two transfers under one id, and none that goes on under another.
        if let (Some(old), Some(new)) = (&old.pending, &new.pending)
            && old.id == new.id
        {
            assert_eq!(old.target, new.target);
        }
    }
    match (command, outcome) {
        (Command::Flip { transfers }, Outcome::Flipped(flipped)) => {
            let due: BTreeSet<_> =
                transfers.iter().filter(|(id, transfer)| before.is_pending(*id, *transfer)).collect();
            assert_eq!(flipped.iter().collect::<BTreeSet<_>>(), due);
            assert_eq!(flipped.len(), due.len(), "twice");
        }
        (Command::Cancel { partition, transfer }, _) => {
            assert_eq!(!refused, before.is_pending(*partition, *transfer));
            assert!(!after.is_pending(*partition, *transfer));
        }
        (Command::Admit { member, token, now_ms }, _) => {
            let in_time = before.tokens.get(token).is_some_and(|ends_ms| ends_ms > now_ms);
            assert!(refused || in_time, "a token that is over");
            if let Outcome::Admitted(id) = outcome {
                assert_eq!(after.members[id].uid, member.uid);
                assert_ne!(after.members[id].status, MemberStatus::Removed);
            }
        }
        (Command::IssueToken { now_ms, .. }, Outcome::Done) => {
            assert!(after.tokens.values().all(|ends_ms| ends_ms > now_ms), "a token outlives its end");
        }
        (Command::Removed { node }, Outcome::Done) => assert!(!after.holds(*node)),
        (Command::Deploy { name, base_version, .. }, Outcome::Deployed(uid, version)) => {
            assert_eq!((*version, after.modules[uid].name.as_str()), (base_version + 1, name.as_str()));
            assert!(before.modules.contains_key(uid) || uid.0 == after.applied, "an old uid given again");
        }
        (Command::Found { .. }, _) => assert!(refused),
        _ => {}
    }
}

fn snapshot(machine: &Machine) -> Machine {
    let mut bytes = Vec::new();
    ciborium::into_writer(machine, &mut bytes).unwrap();
    ciborium::from_reader(&bytes[..]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_log_keeps_the_invariants(steps in prop::collection::vec(step(), 1..120)) {
        let mut machine = Machine::default();
        for (at, step) in steps.iter().enumerate() {
            // Entries of the log's own, which are not applied, leave gaps.
            let index = 2 * at as u64 + 1;
            let (before, command) = (machine.state.clone(), step.command(machine.state.as_ref()));
            let outcome = machine.apply(index, &command);
            match (before, &machine.state) {
                (Some(before), Some(after)) => {
                    prop_assert_eq!(after.applied, index);
                    check_change(&before, &command, &outcome, after);
                }
                (None, after) => prop_assert_eq!(after.is_some(), outcome == Outcome::Done),
                (Some(_), None) => prop_assert!(false, "the state is gone"),
            }
            machine.state.iter().for_each(check);
        }
    }

    #[test]
    fn the_same_log_gives_the_same_state_from_the_start_or_from_any_snapshot(
        steps in prop::collection::vec(step(), 1..60), cut in 0usize..60
    ) {
        let (mut first, mut second) = (Machine::default(), Machine::default());
        for (at, step) in steps.iter().enumerate() {
            if at == cut {
                second = snapshot(&second);
            }
            let command = step.command(first.state.as_ref());
            let index = at as u64 + 1;
            prop_assert_eq!(first.apply(index, &command), second.apply(index, &command));
            prop_assert_eq!(&first, &second);
        }
        prop_assert_eq!(snapshot(&first), first);
    }
}

/// The properties are only as good as what the logs reach.
#[test]
fn the_logs_reach_what_they_are_for() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(step(), 100..120);
    let (mut flips, mut cancels, mut removed, mut rolled_back, mut three) = (0, 0, 0, 0, 0);
    for _ in 0..100 {
        let steps = strategy.new_tree(&mut runner).unwrap().current();
        let mut machine = Machine::default();
        for (at, step) in steps.iter().enumerate() {
            let command = step.command(machine.state.as_ref());
            match (&command, machine.apply(at as u64 + 1, &command)) {
                (_, Outcome::Flipped(flipped)) => flips += flipped.len(),
                (Command::Cancel { .. }, Outcome::Done) => cancels += 1,
                (Command::Removed { .. }, Outcome::Done) => removed += 1,
                (Command::Rollback { .. }, Outcome::Deployed(..)) => rolled_back += 1,
                _ => {}
            }
            let sets = machine.state.iter().flat_map(|state| &state.ring.partitions);
            three += sets.filter(|partition| partition.replicas.len() == 3).count();
        }
    }
    let seen = [flips, cancels, removed, rolled_back, three];
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}
