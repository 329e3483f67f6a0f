//! Checks that a commit does what its plan shows, by examples and on arbitrary clusters.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use annulus_core::ids::{ClusterId, Digest, NodeId, NodeUid};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::mutants::{self, Mutant};
use annulus_core::state::{
    Change, ClusterState, Command, Load, Machine, Member, MemberStatus, Outcome, Plan, Refusal, Release,
    Warning, plan,
};
use proptest::prelude::*;

const TOKEN: Digest = Digest([1; 32]);

fn member(number: u8, zone: Option<&str>, staged: bool) -> Member {
    Member {
        id: NodeId(0),
        uid: NodeUid([number; 16]),
        name: format!("n{number}@h"),
        listen: "127.0.0.1:1".into(),
        http: "127.0.0.1:2".into(),
        zone: zone.map(str::to_owned),
        weight: 1,
        status: MemberStatus::Joining,
        staged,
        banned: false,
        key: Some(Digest([number; 32])),
    }
}

struct World {
    machine: Machine,
    index: u64,
    /// Node ids by the number of the node; the founder is 0.
    ids: Vec<NodeId>,
}

impl World {
    fn founded(size: u32, zone: Option<&str>) -> Self {
        let mut world = Self { machine: Machine::default(), index: 0, ids: vec![NodeId(0)] };
        world.ok(Command::Found {
            cluster: ClusterId([1; 16]),
            ring_size: RingSize::try_from(size).unwrap(),
            width: 3,
            founder: member(0, zone, false),
            authority: String::new(),
            authority_key: String::new(),
            level: annulus_core::version::LEVEL,
        });
        world.ok(Command::IssueToken { token: TOKEN, now_ms: 0, expires_ms: 9, uses: Some(100) });
        world
    }

    /// Create a world with this number of members, balanced and at rest.
    fn of(size: u32, nodes: usize) -> Self {
        let mut world = Self::founded(size, None);
        for _ in 1..nodes {
            world.join(None);
        }
        world.settle();
        world
    }

    fn state(&self) -> &ClusterState {
        self.machine.state.as_ref().unwrap()
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        self.machine.apply(self.index, &command)
    }

    fn ok(&mut self, command: Command) -> Outcome {
        let text = format!("{command:?}");
        let outcome = self.apply(command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{text}: {outcome:?}");
        outcome
    }

    fn refused(&mut self, command: Command) -> Refusal {
        let before = self.state().clone();
        let Outcome::Refused(refusal) = self.apply(command) else { panic!("not refused") };
        assert_eq!(*self.state(), ClusterState { applied: self.index, ..before });
        refusal
    }

    fn admit(&mut self, zone: Option<&str>, staged: bool) -> NodeId {
        let member = member(self.ids.len() as u8, zone, staged);
        let Outcome::Admitted(id) = self.ok(Command::Admit { member, token: TOKEN, now_ms: 1 }) else {
            panic!()
        };
        self.ids.push(id);
        id
    }

    fn join(&mut self, zone: Option<&str>) -> NodeId {
        let node = self.admit(zone, false);
        self.ok(Command::Joined { node });
        node
    }

    fn rebalance(&mut self) {
        let (base, table) = (self.state().ring.epoch, self.state().claimed_table());
        self.ok(Command::Rebalance { base, table });
    }

    fn flip(&mut self, many: usize) {
        let transfers =
            self.state().ring.transfers().map(|(id, transfer)| (id, transfer.id)).take(many).collect();
        self.ok(Command::Flip { transfers });
    }

    /// Rebalance and flip everything, as the claimant and the owners do by themselves.
    fn settle(&mut self) {
        while !self.state().is_balanced() {
            self.rebalance();
        }
        self.flip(usize::MAX);
    }

    fn deploy(&mut self) {
        let release = Release {
            version: 0,
            digest: TOKEN,
            bytes: 1,
            description: vec![0xa0],
            config: None,
            call_ms: None,
        };
        let (n, r, w, storage, config) = (None, None, None, None, None);
        self.ok(Command::Deploy {
            name: "kv".into(),
            n,
            r,
            w,
            sloppy: None,
            storage,
            config,
            release,
            base_version: 0,
        });
    }

    fn stage(&mut self, change: Change) {
        self.ok(Command::Stage { change });
    }

    fn plan(&self) -> Plan {
        plan(self.state(), &self.state().staged).unwrap()
    }

    fn commit(&mut self) -> Plan {
        let plan = self.plan();
        self.ok(Command::Commit { stage: plan.stage, base: plan.base, table: plan.table.clone() });
        plan
    }

    fn load(&self, node: NodeId) -> Load {
        let sets = self.state().ring.partitions.iter().map(|partition| &partition.replicas);
        Load {
            owned: sets.clone().filter(|set| set[0] == node).count(),
            replicas: sets.filter(|set| set.contains(&node)).count(),
        }
    }

    fn targets(&self) -> Vec<Vec<NodeId>> {
        self.state().ring.partitions.iter().map(|partition| partition.target().to_vec()).collect()
    }
}

#[test]
fn several_joins_and_leaves_are_one_rebalancing() {
    let mut world = World::of(64, 3);
    let (d, e) = (world.admit(None, true), world.admit(None, true));
    let a = world.ids[0];
    assert_eq!(world.state().staged, [Change::Join { node: d }, Change::Join { node: e }]);
    // Only a commit makes the waiting nodes members.
    assert_eq!(world.refused(Command::Joined { node: d }), Refusal::Waits("n3@h".into()));
    assert!(world.state().is_balanced());
    world.stage(Change::Leave { node: a });
    let before = world.state().ring.clone();
    let plan = world.commit();
    assert!(world.state().staged.is_empty());
    assert_eq!(world.targets(), plan.table);
    assert!(world.state().is_balanced(), "nothing is left for the claimant to aim at");
    // All transfers have one index, so they are one rebalancing.
    let ids: BTreeSet<_> = world.state().ring.transfers().map(|(_, transfer)| transfer.id.0).collect();
    assert_eq!(ids, [world.index].into());
    // Only two things move: the partitions that the leaver owned, and those that the new nodes are to own.
    let then: BTreeMap<NodeId, Load> = plan.nodes.iter().map(|share| (share.node, share.then)).collect();
    let owned: Vec<usize> = then.values().map(|load| load.owned).collect();
    assert_eq!((then[&a], owned.iter().sum::<usize>()), (Load::default(), 64));
    assert!(owned[1..].iter().all(|owned| (16..=16).contains(owned)), "{owned:?}");
    let moved = plan.moves.iter().filter(|one| one.owner).count();
    assert_eq!(moved, 32, "two shares of four change hands");
    assert!(
        plan.moves.iter().all(|one| !one.under_way && before.owner(one.partition) != one.to || !one.owner)
    );
    world.flip(usize::MAX);
    for share in &plan.nodes {
        assert_eq!(world.load(share.node), share.then);
    }
    assert_eq!(world.ok(Command::Removed { node: a }), Outcome::Done);
}

#[test]
fn a_commit_is_refused_when_anything_has_changed_since_the_plan() {
    let mut world = World::of(64, 3);
    let stage = world.state().stage_version;
    let (base, table) = (world.state().ring.epoch, world.state().claimed_table());
    assert_eq!(world.refused(Command::Commit { stage, base, table }), Refusal::NothingStaged);

    let b = world.ids[1];
    world.stage(Change::Leave { node: b });
    let shown = world.plan();
    let commit =
        |plan: &Plan| Command::Commit { stage: plan.stage, base: plan.base, table: plan.table.clone() };
    // Another operator stages a change too.
    let d = world.admit(None, true);
    assert_eq!(world.refused(commit(&shown)), Refusal::PlanChanged);
    // The ring changes after the plan was made.
    let shown = world.plan();
    let e = world.join(None);
    world.rebalance();
    assert_eq!(world.refused(commit(&shown)), Refusal::PlanChanged);
    assert_ne!(world.plan().id(), shown.id());
    // A node leaves at once: its staged leave is dropped, and the plan differs.
    world.settle();
    let shown = world.plan();
    world.ok(Command::Leave { node: b });
    assert_eq!(world.state().staged, [Change::Join { node: d }]);
    assert_eq!(world.refused(commit(&shown)), Refusal::PlanChanged);
    // After the stage is cleared nothing is left to commit, and the joining node keeps waiting.
    world.ok(Command::ClearStaged);
    let shown = world.plan();
    assert_eq!(world.refused(commit(&shown)), Refusal::NothingStaged);
    assert!(world.state().member(d).unwrap().waits());
    assert!(shown.warnings.contains(&Warning::Waits("n3@h".into())), "{:?}", shown.warnings);
    world.stage(Change::Join { node: d });
    world.commit();
    assert_eq!(world.state().member(d).unwrap().status, MemberStatus::Member);
    assert_eq!(world.state().member(e).unwrap().status, MemberStatus::Member);
}

#[test]
fn a_flip_that_the_plan_included_does_not_change_the_plan() {
    let mut world = World::of(64, 2);
    world.join(None);
    world.rebalance();
    world.stage(Change::Leave { node: world.ids[1] });
    let shown = world.plan();
    world.flip(5);
    let now = world.plan();
    assert_ne!(shown.base, now.base);
    assert_eq!((shown.id(), &shown.table), (now.id(), &now.table));
}

#[test]
fn a_replacement_takes_exactly_the_places_of_the_node_it_replaces() {
    let mut world = World::of(64, 4);
    world.deploy();
    let (old, new) = (world.ids[2], world.admit(None, true));
    let before = world.state().ring.clone();
    world.stage(Change::Replace { old, new });
    // The leave conflicts with the staged replacement of the same node.
    let refusal = world.refused(Command::Stage { change: Change::Leave { node: old } });
    assert!(matches!(refusal, Refusal::Conflict(_)), "{refusal}");
    let plan = world.commit();
    for (id, partition) in before.iter() {
        let expected: Vec<NodeId> =
            partition.replicas.iter().map(|node| if *node == old { new } else { *node }).collect();
        assert_eq!(plan.table[usize::from(id.0)], expected);
    }
    assert!(plan.moves.iter().all(|one| (one.from, one.to) == (old, new)));
    assert_eq!(plan.warnings, []);
    assert_eq!(world.state().member(old).unwrap().status, MemberStatus::Leaving);
    assert!(world.state().losses.is_empty());
    world.flip(usize::MAX);
    assert!(!world.state().holds(old) && world.state().is_balanced());
}

#[test]
fn partitions_of_a_removed_owner_get_another_at_once_and_are_recorded_as_possible_losses() {
    let mut world = World::of(64, 4);
    world.deploy();
    let gone = world.ids[1];
    let before = world.state().ring.clone();
    let held = world.load(gone);
    let change = Change::Remove { node: gone };
    let plan = plan(world.state(), &[change]).unwrap();
    let loses = Warning::Loses { node: "n1@h".into(), partitions: held.owned, modules: "kv".into() };
    assert_eq!(plan.warnings, [loses]);
    world.ok(Command::Change { change, base: plan.base, table: plan.table.clone(), down: None });
    let state = world.state();
    assert_eq!(state.members[&gone].status, MemberStatus::Removed);
    assert!(state.members[&gone].banned && !state.holds(gone));
    assert_eq!(state.losses.len(), held.owned);
    for (id, old) in before.iter().filter(|(_, partition)| partition.replicas.contains(&gone)) {
        let now = state.ring.partition(id);
        assert_eq!((now.replicas.len(), now.version), (2, world.index));
        assert_eq!(state.losses.contains_key(&id), old.replicas[0] == gone);
        // The version shows that a request was routed by the old set; the next node of the set answers.
        assert_eq!(now.replicas[0], *old.replicas.iter().find(|node| **node != gone).unwrap());
    }
    assert_eq!(world.targets(), plan.table);
    assert!(world.state().is_balanced());
    let index = world.index;
    world.ok(Command::Acknowledge { up_to: index - 1 });
    assert_eq!(world.state().losses.len(), held.owned);
    world.ok(Command::Acknowledge { up_to: index });
    assert!(world.state().losses.is_empty());
}

#[test]
fn partitions_of_a_removed_sole_replica_go_to_the_nodes_of_the_table() {
    // The ring has not been rebalanced yet, so the founder alone holds all of it.
    let mut world = World::founded(8, None);
    world.deploy();
    let (b, founder) = (world.join(None), world.ids[0]);
    world.rebalance();
    let pending = world.state().ring.transfers().count();
    assert!(pending > 0);
    let change = Change::Remove { node: founder };
    let plan = plan(world.state(), &[change]).unwrap();
    world.ok(Command::Change { change, base: plan.base, table: plan.table, down: None });
    let state = world.state();
    assert!(state.ring.iter().all(|(_, partition)| partition.replicas == [b] && partition.pending.is_none()));
    assert_eq!(state.losses.len(), 8);
}

#[test]
fn a_replacement_of_a_node_marked_down_bans_it_and_takes_its_places() {
    let mut world = World::of(64, 3);
    world.deploy();
    let (old, new) = (world.ids[1], world.admit(None, true));
    world.ok(Command::Down { node: old });
    world.ok(Command::ClearStaged);
    let change = Change::Replace { old, new };
    let plan = plan(world.state(), &[change]).unwrap();
    assert!(matches!(&plan.warnings[..], [Warning::Loses { .. }]), "{:?}", plan.warnings);
    let owned = world.load(old).owned;
    world.ok(Command::Change { change, base: plan.base, table: plan.table.clone(), down: None });
    assert!(world.state().members[&old].banned);
    assert_eq!(world.state().losses.len(), owned);
    world.flip(usize::MAX);
    assert_eq!(world.load(new).owned, owned);
    let stays = world.ids[2];
    assert_eq!(plan.moves.iter().filter(|one| one.to == stays).count(), 0, "no other node gets anything");
}

#[test]
fn a_join_during_a_rebalancing_neither_stalls_nor_restarts_it() {
    let mut world = World::of(64, 3);
    world.join(None);
    world.rebalance();
    world.flip(3);
    let pending = |world: &World| -> BTreeMap<PartitionId, (u64, Vec<NodeId>)> {
        world.state().ring.transfers().map(|(id, one)| (id, (one.id.0, one.target.clone()))).collect()
    };
    let under_way = pending(&world);
    let fifth = world.admit(None, true);
    let plan = world.commit();
    let now = pending(&world);
    let mut kept = 0;
    for (id, (transfer, target)) in &under_way {
        let (newer, aim) = now.get(id).unwrap();
        // A transfer is kept, or gets another target because the new node becomes a holder of the partition.
        assert_eq!(newer == transfer, aim == target, "{id:?}");
        assert!(aim == target || aim.contains(&fifth), "{id:?}: {target:?} -> {aim:?}");
        kept += usize::from(newer == transfer);
    }
    assert!(kept > 0 && kept < now.len());
    assert_eq!(
        plan.moves.iter().filter(|one| one.under_way).map(|one| one.partition).collect::<BTreeSet<_>>().len(),
        kept
    );
}

#[test]
fn invalid_changes_are_refused_with_a_reason() {
    let mut world = World::of(8, 2);
    let (a, b) = (world.ids[0], world.ids[1]);
    let stage = |change| Command::Stage { change };
    let unknown = NodeId(77);
    assert_eq!(world.refused(stage(Change::Remove { node: unknown })), Refusal::NotMember("77".into()));
    assert_eq!(world.refused(stage(Change::Leave { node: unknown })), Refusal::NotMember("77".into()));
    assert!(matches!(world.refused(stage(Change::Join { node: a })), Refusal::Status { .. }));
    assert!(matches!(world.refused(stage(Change::Replace { old: a, new: a })), Refusal::BadSetting(_)));
    let full = Refusal::NotEmpty("n1@h".into());
    assert_eq!(world.refused(stage(Change::Replace { old: a, new: b })), full);
    world.stage(Change::Leave { node: a });
    let version = world.state().stage_version;
    world.stage(Change::Leave { node: a });
    assert_eq!(world.state().stage_version, version, "staging a change twice stages it once");
    let last = Refusal::Conflict(Box::new(Refusal::LastMember));
    assert_eq!(world.refused(stage(Change::Leave { node: b })), last);
    world.ok(Command::ClearStaged);
    world.ok(Command::Down { node: b });
    assert_eq!(world.refused(Command::Down { node: a }), Refusal::LastMember);
    assert_eq!(world.refused(stage(Change::Remove { node: a })), Refusal::LastMember);
    assert_eq!(world.refused(stage(Change::Leave { node: a })), Refusal::LastMember);
    // A node that is down cannot hand off.
    assert!(matches!(world.refused(stage(Change::Leave { node: b })), Refusal::Status { .. }));
    world.ok(Command::Up { node: b });
    assert_eq!(world.state().member(b).unwrap().status, MemberStatus::Member);
    assert!(matches!(
        world.refused(Command::Placed { node: b, zone: None, weight: Some(0) }),
        Refusal::BadSetting(_)
    ));
}

#[test]
fn a_new_zone_or_weight_moves_the_ring() {
    let mut world = World::of(64, 3);
    let b = world.ids[1];
    world.ok(Command::Placed { node: b, zone: None, weight: Some(3) });
    assert!(!world.state().is_balanced());
    world.settle();
    assert!(world.load(b).owned > world.load(world.ids[0]).owned * 2);
    world.ok(Command::Placed { node: b, zone: Some("x".into()), weight: None });
    let member = world.state().member(b).unwrap();
    assert_eq!((member.zone.as_deref(), member.weight), (Some("x"), 3));
}

#[test]
fn a_plan_warns_of_too_few_nodes_or_zones() {
    let mut world = World::founded(8, Some("x"));
    for zone in ["x", "y", "z"] {
        world.join(Some(zone));
    }
    world.settle();
    assert_eq!(world.plan().warnings, []);
    world.stage(Change::Leave { node: world.ids[3] });
    let zones = Warning::FewZones { partitions: 8, zones: 2 };
    assert_eq!(world.plan().warnings, [zones]);
    world.stage(Change::Leave { node: world.ids[1] });
    assert_eq!(world.plan().warnings, [Warning::FewNodes { nodes: 2, width: 3 }]);
    let mut plan = world.plan();
    plan.warn_of_the_away(world.state(), |node| node != world.ids[3]);
    assert!(matches!(&plan.warnings[1], Warning::Away { node, moves } if node == "n3@h" && *moves > 0));
}

/// Arbitrary changes, as (kind, node, other node).
fn changes() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    prop::collection::vec((0u8..4, 0u8..8, 0u8..8), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_commit_does_what_its_plan_shows(
        zones in prop::collection::vec(0u8..4, 1..6), waiting in 0usize..3, moved in 0usize..20,
        down in prop::option::of(0u8..6), changes in changes()
    ) {
        let zone = |at: u8| [None, Some("x"), Some("y"), Some("z")][usize::from(at)];
        let mut world = World::founded(16, zone(zones[0]));
        world.deploy();
        for at in &zones[1..] {
            world.join(zone(*at));
            world.rebalance();
            world.flip(moved);
        }
        for _ in 0..waiting {
            world.admit(None, true);
        }
        if let Some(down) = down {
            let node = world.ids[usize::from(down) % world.ids.len()];
            world.apply(Command::Down { node });
        }
        for (kind, node, other) in changes {
            let node = world.ids[usize::from(node) % world.ids.len()];
            let new = world.ids[usize::from(other) % world.ids.len()];
            let change = match kind {
                0 => Change::Join { node },
                1 => Change::Leave { node },
                2 => Change::Replace { old: node, new },
                _ => Change::Remove { node },
            };
            world.apply(Command::Stage { change });
        }
        prop_assume!(!world.state().staged.is_empty());
        let before = world.state().clone();
        let plan = world.commit();
        prop_assert_eq!(world.targets(), plan.table.clone());
        prop_assert!(world.state().is_balanced(), "the claimant would aim elsewhere");

        // The moves match the transfers: each transfer that changes the owner appears once, and no others
        // appear.
        let owners: BTreeMap<PartitionId, (NodeId, NodeId)> = world.state().ring.transfers()
            .map(|(id, one)| (id, (world.state().ring.owner(id), one.target[0])))
            .filter(|(_, (from, to))| from != to).collect();
        let shown: BTreeMap<PartitionId, (NodeId, NodeId)> = plan.moves.iter()
            .filter(|one| one.owner).map(|one| (one.partition, (one.from, one.to))).collect();
        prop_assert_eq!(owners, shown);
        for one in &plan.moves {
            let known = before.pending_of(one.partition).map(|transfer| transfer.id);
            let now = world.state().pending_of(one.partition).unwrap().id;
            prop_assert_eq!(one.under_way, known == Some(now));
        }
        // Every owner stays, unless it was removed by force and the loss is recorded.
        for (id, old) in before.ring.iter() {
            let owner = world.state().ring.owner(id);
            prop_assert!(owner == old.replicas[0] || world.state().losses.contains_key(&id));
            prop_assert!(world.state().member(owner).is_some());
        }
        world.flip(usize::MAX);
        for share in &plan.nodes {
            prop_assert_eq!(world.load(share.node), share.then);
        }
        for member in world.state().live_members() {
            prop_assert!(member.status != MemberStatus::Leaving || !world.state().holds(member.id));
        }
    }
}

#[test]
fn a_planned_hand_over_is_not_committed_as_a_removal() {
    let mut world = World::of(64, 4);
    let (old, new) = (world.ids[1], world.admit(None, true));
    world.ok(Command::ClearStaged);
    world.ok(Command::Stage { change: Change::Replace { old, new } });
    let shown = plan(world.state(), &world.state().staged).unwrap();
    world.ok(Command::Down { node: old });
    let now = plan(world.state(), &world.state().staged).unwrap();
    assert_eq!(shown.table, now.table, "it would look the same");
    assert_ne!(shown.id(), now.id());
    let commit =
        |plan: &Plan| Command::Commit { stage: plan.stage, base: plan.base, table: plan.table.clone() };
    assert_eq!(world.refused(commit(&shown)), Refusal::PlanChanged);
    let change = Change::Replace { old, new };
    let at_once = Command::Change { change, base: shown.base, table: shown.table.clone(), down: Some(false) };
    assert_eq!(world.refused(at_once), Refusal::RingChanged);
    assert!(!world.state().members[&old].banned);
    // Once the node is up again, the plan of the removal is void and the hand-over can be committed.
    world.ok(Command::Up { node: old });
    assert_eq!(world.refused(commit(&now)), Refusal::PlanChanged);
    let again = plan(world.state(), &world.state().staged).unwrap();
    world.ok(commit(&again));
    assert_eq!(world.state().members[&old].status, MemberStatus::Leaving);
}

fn deploy(name: &str, n: u8) -> Command {
    let release = Release {
        version: 0,
        digest: Digest([2; 32]),
        bytes: 1,
        description: Vec::new(),
        config: None,
        call_ms: None,
    };
    let (n, r, w, storage, config) = (Some(n), None, None, None, None);
    Command::Deploy { name: name.into(), n, r, w, sloppy: None, storage, config, release, base_version: 0 }
}

/// Report every node that a pending transfer waits for.
fn arrive(world: &mut World) {
    let mut arrivals = Vec::new();
    for (id, transfer) in world.state().ring.transfers() {
        for module in world.state().modules.values().filter(|module| module.n > 1) {
            let partition = world.state().ring.partition(id);
            let reporters = world.state().reporters(partition, usize::from(module.n));
            arrivals.extend(reporters.map(|node| (node, (id, transfer.id, module.uid))));
        }
    }
    for (node, arrival) in arrivals {
        world.ok(Command::Arrived { node, arrivals: vec![arrival] });
    }
}

#[test]
fn replicas_move_one_at_a_time_and_flip_once_they_have_arrived() {
    let mut world = World::of(16, 3);
    world.ok(deploy("kv", 3));
    for _ in 0..3 {
        world.join(None);
    }
    let mut steps = 0;
    while !world.state().is_balanced() {
        // What some sets are on the way to may change the goal of others, until each is there or on its way.
        for round in 0.. {
            let Some(table) = world.state().due_table() else { break };
            let before = world.state().ring.transfers().count();
            let base = world.state().ring.epoch;
            world.ok(Command::Rebalance { base, table });
            assert!(world.state().ring.transfers().count() > before && round < 16);
        }
        for (_, partition) in world.state().ring.iter() {
            assert!(partition.successors(3).count() <= 1, "{partition:?}");
        }
        let pending = world.state().ring.transfers().count();
        world.flip(usize::MAX);
        let kept = world.state().ring.transfers().count();
        assert!(kept > 0 && kept <= pending, "what has no successor flips at once, and nothing else");
        arrive(&mut world);
        world.flip(usize::MAX);
        assert_eq!(world.state().ring.transfers().count(), 0);
        steps += 1;
        assert!(steps < 20);
    }
    assert!(steps > 1, "some sets get two new nodes");
    let all = world.ids.clone();
    assert!(all.iter().all(|node| world.load(*node).replicas >= 7), "everybody has a share");
    // A table that moves two replicas of a partition at once is refused.
    let base = world.state().ring.epoch;
    let far: Vec<Vec<NodeId>> = world
        .state()
        .ring
        .partitions
        .iter()
        .map(|partition| all.iter().copied().filter(|node| !partition.replicas.contains(node)).collect())
        .collect();
    assert!(matches!(world.refused(Command::Rebalance { base, table: far }), Refusal::BadTable(_)));
}

#[test]
fn a_dead_node_leaves_its_replicas_to_the_others_and_is_no_loss() {
    let mut world = World::of(16, 4);
    world.ok(deploy("kv", 3));
    let dead = world.ids[0];
    let plan = plan(world.state(), &[Change::Remove { node: dead }]).unwrap();
    assert!(!plan.warnings.iter().any(|warning| matches!(warning, Warning::Loses { .. })), "{plan:?}");
    let (change, base, table) = (Change::Remove { node: dead }, plan.base, plan.table);
    world.ok(Command::Change { change, base, table, down: Some(false) });
    assert!(world.state().losses.is_empty());
    // What an absent successor, or a node that is none, reports is of no effect.
    let (id, transfer) = world.state().ring.transfers().map(|(id, one)| (id, one.id)).next().unwrap();
    let module = world.state().modules.keys().copied().next().unwrap();
    let member = world.state().ring.partition(id).owner();
    world.ok(Command::Arrived { node: member, arrivals: vec![(id, transfer, module)] });
    world.flip(usize::MAX);
    assert!(world.state().ring.pending_of(id).is_some());
    arrive(&mut world);
    world.flip(usize::MAX);
    assert!(world.state().ring.iter().all(|(_, partition)| partition.replicas.len() == 3));
    assert!(world.state().is_balanced());
}

/// Have one of three members leave. Return true if the partitions flip at once.
fn flips_at_once(level: u32) -> (World, bool) {
    let mut world = World::of(16, 3);
    world.machine.state.as_mut().unwrap().level = level;
    world.ok(deploy("kv", 3));
    let node = world.ids[2];
    world.ok(Command::Leave { node });
    let (base, table) = (world.state().ring.epoch, world.state().due_table().unwrap());
    world.ok(Command::Rebalance { base, table });
    assert_eq!(world.state().ring.transfers().count(), 16);
    world.flip(usize::MAX);
    let flipped = world.state().ring.transfers().count() == 0;
    (world, flipped)
}

#[test]
fn a_set_gets_smaller_once_those_that_stay_have_what_the_leaver_has() {
    assert!(flips_at_once(6).1);
    let (mut world, flipped) = flips_at_once(annulus_core::version::LEVEL);
    assert!(!flipped);
    let module = world.state().modules.keys().copied().next().unwrap();
    // One of the two is not enough, and the leaver's word does not count.
    for node in [world.ids[0], world.ids[2]] {
        let arrivals = world.state().ring.transfers().map(|(id, one)| (id, one.id, module)).collect();
        world.ok(Command::Arrived { node, arrivals });
    }
    world.flip(usize::MAX);
    assert_eq!(world.state().ring.transfers().count(), 16);
    arrive(&mut world);
    world.flip(usize::MAX);
    assert!(world.state().ring.iter().all(|(_, partition)| partition.replicas.len() == 2));
}

#[test]
fn a_plan_warns_of_a_member_that_stays_and_is_down() {
    let mut world = World::of(16, 3);
    world.ok(deploy("kv", 3));
    let (down, leaver) = (world.ids[1], world.ids[2]);
    let mut plan = plan(world.state(), &[Change::Leave { node: leaver }]).unwrap();
    plan.warn_of_the_away(world.state(), |node| node != down);
    let waits = Warning::Away { node: "n1@h".into(), moves: 16 };
    assert!(plan.warnings.contains(&waits), "{:?}", plan.warnings);
}

#[test]
fn a_fault_that_flips_before_those_that_stay_are_level_is_detected() {
    let broken = || flips_at_once(annulus_core::version::LEVEL).1;
    assert!(mutants::during(Some(Mutant::FlipUnlevelled), broken));
}

#[test]
fn replicas_are_not_deployed_while_partitions_move() {
    let mut world = World::of(16, 3);
    world.join(None);
    let (base, table) = (world.state().ring.epoch, world.state().due_table().unwrap());
    world.ok(Command::Rebalance { base, table });
    assert!(matches!(world.refused(deploy("kv", 3)), Refusal::BadSetting(why) if why.contains("moving")));
    world.settle();
    world.ok(deploy("kv", 3));
}
