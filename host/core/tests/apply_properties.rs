//! Checks that any log keeps the state's invariants and gives the same state on every node.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use annulus_core::ids::{ClusterId, Digest, NodeId, NodeUid, TransferId};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::quorum::Group;
use annulus_core::state::{
    Change, ClusterState, Command, Machine, Member, MemberStatus, Outcome, Release, StorageKind, plan,
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
        staged: false,
        banned: false,
        key: Some(Digest([uid; 32])),
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
        level: annulus_core::version::LEVEL,
    }
}

/// A command that is often, but not always, valid: numbers select something that exists in the state if there
/// is any.
#[derive(Clone, Debug)]
enum Step {
    Command(Box<Command>),
    /// The table that the claim computes, or that table with one set replaced.
    Claim {
        stale: bool,
        odd: Option<(u8, Vec<u8>)>,
    },
    /// The pending transfers of these partitions, some under a wrong id.
    Flip(Vec<(u8, bool)>),
    Cancel(u8, bool),
    Node(u8, u8),
    /// A change that is staged, or made at once with a table from the current or an older ring.
    Change {
        kind: u8,
        node: u8,
        other: u8,
        staged: bool,
        stale: bool,
    },
    /// The staged changes with their table, or with one set of the table replaced.
    Commit {
        stale: bool,
        odd: Option<(u8, Vec<u8>)>,
    },
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
    let token = (0u8..3, 0u64..50, 20u64..200, prop::option::weighted(0.9, 0u32..30)).prop_map(
        |(token, now_ms, expires_ms, uses)| Command::IssueToken {
            token: Digest([token; 32]),
            now_ms,
            expires_ms,
            uses,
        },
    );
    let wait = prop::bool::weighted(0.3);
    let admit = (small.clone(), small.clone(), 0u8..3, 0u64..50, 0u32..3, wait).prop_map(
        |(name, uid, token, now_ms, weight, staged)| Command::Admit {
            member: Member { staged, ..member(name, uid, weight) },
            token: Digest([token; 32]),
            now_ms,
        },
    );
    let name = (0u8..3).prop_map(|name| format!("m{name}"));
    let module = (name, prop::bool::weighted(0.7)).prop_map(|(name, roll)| {
        if roll {
            Command::Rollback { name, base: None, to: None }
        } else {
            Command::Undeploy { name, base: None }
        }
    });
    let plain = prop_oneof![
        1 => Just(found()),
        1 => Just(Command::ClearStaged),
        1 => (0u64..100).prop_map(|up_to| Command::Acknowledge { up_to }),
        6 => token,
        10 => admit,
        6 => module,
    ];
    let odd = prop::option::weighted(0.3, (0u8..8, prop::collection::vec(small.clone(), 0..5)));
    let quorum = || prop::option::of(0u8..5);
    let change = (0u8..4, small.clone(), small.clone(), any::<bool>(), prop::bool::weighted(0.1));
    prop_oneof![
        4 => change.prop_map(|(kind, node, other, staged, stale)| Step::Change { kind, node, other, staged, stale }),
        2 => (prop::bool::weighted(0.1), odd.clone()).prop_map(|(stale, odd)| Step::Commit { stale, odd }),
        7 => plain.prop_map(|command| Step::Command(Box::new(command))),
        5 => (prop::bool::weighted(0.1), odd).prop_map(|(stale, odd)| Step::Claim { stale, odd }),
        5 => prop::collection::vec((0u8..10, prop::bool::weighted(0.1)), 0..16).prop_map(Step::Flip),
        2 => (0u8..9, prop::bool::weighted(0.3)).prop_map(|(partition, wrong)| Step::Cancel(partition, wrong)),
        5 => (prop::sample::select(vec![0u8, 0, 1, 2, 2, 3, 4, 4, 5, 6]), small).prop_map(|(what, node)| Step::Node(what, node)),
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
            Self::Node(4, at) => Command::Down { node: node(at) },
            Self::Node(5, at) => Command::Up { node: node(at) },
            Self::Node(6, at) => Command::Placed {
                node: node(at),
                zone: Some(format!("z{}", at % 2)),
                weight: Some(u32::from(at % 3)),
            },
            Self::Change { kind, node: at, other, staged, stale } => {
                let change = match kind {
                    0 => Change::Join { node: node(at) },
                    1 => Change::Leave { node: node(at) },
                    2 => {
                        let waiting = state.live_members().find(|one| one.status == MemberStatus::Joining);
                        let new = waiting.filter(|_| other % 4 > 0).map_or_else(|| node(other), |one| one.id);
                        Change::Replace { old: node(at), new }
                    }
                    _ => Change::Remove { node: node(at) },
                };
                if *staged {
                    return Command::Stage { change };
                }
                let table = plan(state, &[change]).map_or_else(|_| state.claimed_table(), |plan| plan.table);
                Command::Change { change, base: state.ring.epoch - u64::from(*stale), table, down: None }
            }
            Self::Commit { stale, odd } => {
                let table = plan(state, &state.staged);
                let mut table = table.map_or_else(|_| state.claimed_table(), |plan| plan.table);
                if let Some((at, set)) = odd {
                    table[usize::from(*at)] = set.iter().map(node).collect();
                }
                Command::Commit {
                    stage: state.stage_version,
                    base: state.ring.epoch - u64::from(*stale),
                    table,
                }
            }
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
                    sloppy: None,
                    storage: Some(StorageKind::Durable),
                    config: None,
                    release: Release {
                        version: 0,
                        digest: Digest([9; 32]),
                        bytes: 1,
                        description: vec![],
                        config: None,
                        call_ms: None,
                    },
                    base_version: running + u64::from(*stale),
                }
            }
        }
    }
}

/// Check the invariants of every state.
fn check(state: &ClusterState) {
    let live: Vec<&Member> = state.live_members().collect();
    let names: BTreeSet<&str> = live.iter().map(|member| member.name.as_str()).collect();
    let uids: BTreeSet<NodeUid> = state.members.values().map(|member| member.uid).collect();
    assert_eq!((names.len(), uids.len()), (live.len(), state.members.len()), "names and uids are unique");
    assert!(live.iter().any(|member| member.status == MemberStatus::Member), "no member is left");
    assert!(live.iter().all(|member| member.weight > 0));
    assert!(state.members.iter().all(|(id, member)| *id == member.id && member.id.0 <= state.applied));

    assert_eq!(state.ring.partitions.len(), usize::from(state.ring.size.get()));
    assert!(state.ring.epoch <= state.applied);
    for (id, partition) in state.ring.iter() {
        let target = partition.pending.as_ref().map_or(&[][..], |transfer| &transfer.target);
        for set in [&partition.replicas[..], target] {
            let distinct: BTreeSet<_> = set.iter().collect();
            assert!(distinct.len() == set.len() && set.len() <= usize::from(state.width), "{id:?}: {set:?}");
            assert!(
                set.iter().all(|node| state.member(*node).is_some()),
                "{id:?}: {set:?} has an unknown node"
            );
        }
        assert!(!partition.replicas.is_empty() && partition.version <= state.ring.epoch);
        if let Some(transfer) = &partition.pending {
            assert!(!transfer.target.is_empty() && transfer.target != partition.replicas);
            assert!(transfer.id.0 <= state.ring.epoch && transfer.id > partition.made_by);
        }
    }

    for member in state.members.values() {
        assert!(!member.banned || member.status == MemberStatus::Removed, "{member:?}");
    }
    assert!(state.stage_version <= state.applied);
    if !state.staged.is_empty() {
        plan(state, &state.staged).expect("what is staged can be carried out");
    }
    assert!(state.losses.values().all(|loss| state.members[&loss.node].banned));

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

/// Check the invariants of every change.
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
        if let Command::Flip { transfers } = command
            && old.replicas != new.replicas
        {
            let pending = old.pending.as_ref().unwrap();
            assert!(transfers.contains(&(id, pending.id)) && new.replicas == pending.target);
            assert_eq!((new.version, new.made_by), (after.applied, pending.id));
        } else if old.replicas != new.replicas {
            // Only a member that was removed by force loses its place without a handoff.
            let (Command::Change { table, .. } | Command::Commit { table, .. }) = command else {
                panic!("{command:?} changed {id:?}")
            };
            let left: Vec<NodeId> =
                old.replicas.iter().copied().filter(|node| !after.members[node].banned).collect();
            assert!(left.len() < old.replicas.len());
            let expected = if left.is_empty() { &table[usize::from(id.0)] } else { &left };
            assert_eq!((&new.replicas, new.version, new.made_by), (expected, after.applied, old.made_by));
            let lost = after.losses.get(&id).is_some_and(|loss| loss.index == after.applied);
            let owner_gone = old.replicas[0] != new.replicas[0];
            // The others of the set have what modules with several replicas had.
            let single = after.modules.values().any(|module| module.n == 1);
            let had_items = single || left.is_empty() && !after.modules.is_empty();
            assert_eq!(lost, owner_gone && had_items, "{id:?} has lost its owner");
            if owner_gone && let Some(pending) = &new.pending {
                assert_eq!(pending.id.0, after.applied, "another sender, so another transfer");
            }
        } else {
            assert_eq!(old.version, new.version);
        }
        // A node that knows later sets of a module knows it by their version.
        for n in 1..=3 {
            let (old, new) = (Group::of(old, n), Group::of(new, n));
            let same = old == Group { version: old.version, ..new.clone() };
            let is_later = if same { old.version <= new.version } else { old.version < new.version };
            assert!(is_later && new.version <= after.applied, "{command:?}: {old:?}, {new:?}");
        }
        // The table does not depend on what has arrived.
        if old != new && !matches!(command, Command::Arrived { .. }) {
            assert_eq!(after.ring.epoch, after.applied, "{command:?}");
        }
        // No two transfers have one id, and a transfer that continues keeps its id.
        if let (Some(old), Some(new)) = (&old.pending, &new.pending)
            && old.id == new.id
        {
            assert_eq!(old.target, new.target);
        }
    }
    match (command, outcome) {
        (Command::Flip { transfers }, Outcome::Flipped(flipped)) => {
            let is_due = |(id, transfer): &&(PartitionId, TransferId)| {
                before.is_pending(*id, *transfer) && before.has_arrived(before.ring.partition(*id))
            };
            let due: BTreeSet<_> = transfers.iter().filter(is_due).collect();
            assert_eq!(flipped.iter().collect::<BTreeSet<_>>(), due);
            assert_eq!(flipped.len(), due.len(), "twice");
        }
        (Command::Cancel { partition, transfer }, _) => {
            assert_eq!(!refused, before.is_pending(*partition, *transfer));
            assert!(!after.is_pending(*partition, *transfer));
        }
        (Command::Admit { member, token, now_ms }, _) => {
            let in_time = before.tokens.get(token).is_some_and(|ends_ms| ends_ms > now_ms);
            assert!(refused || in_time, "an expired token was accepted");
            if let Outcome::Admitted(id) = outcome {
                assert_eq!(after.members[id].uid, member.uid);
                assert_eq!(after.members[id].key, member.key);
                assert_ne!(after.members[id].status, MemberStatus::Removed);
                let is_new = u32::from(!before.members.contains_key(id));
                let left = after.token_uses.get(token).copied();
                assert_eq!(left.map(|left| left + is_new), before.token_uses.get(token).copied());
            } else {
                assert_eq!(after.token_uses, before.token_uses);
            }
        }
        (Command::IssueToken { now_ms, .. }, Outcome::Done) => {
            assert!(after.tokens.values().all(|ends_ms| ends_ms > now_ms), "an expired token was kept");
            assert!(after.token_uses.keys().eq(after.tokens.keys()), "each token is counted");
        }
        (Command::Commit { stage, base, .. }, _) => {
            let same = (*stage, *base) == (before.stage_version, before.ring.epoch);
            assert!(refused || (same && !before.staged.is_empty()));
            assert!(refused || (after.staged.is_empty() && after.stage_version == after.applied));
        }
        (Command::Joined { node }, Outcome::Done) => {
            assert!(!before.members[node].waits(), "a waiting node joined without a plan");
        }
        (Command::Removed { node }, Outcome::Done) => assert!(!after.holds(*node)),
        (Command::Deploy { name, base_version, .. }, Outcome::Deployed(uid, version)) => {
            assert_eq!((*version, after.modules[uid].name.as_str()), (base_version + 1, name.as_str()));
            assert!(before.modules.contains_key(uid) || uid.0 == after.applied, "an old uid was reused");
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
            // The entries of the log itself, which are not applied, leave gaps.
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

/// The properties are only as good as the states that the logs reach.
#[test]
fn the_logs_reach_every_kind_of_change() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(step(), 100..120);
    let (mut flips, mut cancels, mut removed, mut rolled_back, mut three) = (0, 0, 0, 0, 0);
    let (mut committed, mut at_once, mut lost, mut replaced) = (0, 0, 0, 0);
    for _ in 0..500 {
        let steps = strategy.new_tree(&mut runner).unwrap().current();
        let mut machine = Machine::default();
        for (at, step) in steps.iter().enumerate() {
            let command = step.command(machine.state.as_ref());
            match (&command, machine.apply(at as u64 + 1, &command)) {
                (_, Outcome::Flipped(flipped)) => flips += flipped.len(),
                (Command::Cancel { .. }, Outcome::Done) => cancels += 1,
                (Command::Removed { .. }, Outcome::Done) => removed += 1,
                (Command::Rollback { .. }, Outcome::Deployed(..)) => rolled_back += 1,
                (Command::Commit { .. }, Outcome::Done) => committed += 1,
                (Command::Change { change, .. }, Outcome::Done) => {
                    at_once += 1;
                    replaced += usize::from(matches!(change, Change::Replace { .. }));
                }
                _ => {}
            }
            let sets = machine.state.iter().flat_map(|state| &state.ring.partitions);
            three += sets.filter(|partition| partition.replicas.len() == 3).count();
            lost += machine.state.iter().map(|state| state.losses.len()).sum::<usize>();
        }
    }
    let seen = [flips, cancels, removed, rolled_back, three, committed, at_once, lost, replaced];
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}
