//! Planned changes on whole nodes: staged joins, replace, remove, down, and reports of a restart.

use annulus_core::state::{Change, Loss};

use super::*;

fn join_to_wait(node: &mut Running, to: &Running) -> NodeId {
    let token = token(to);
    let wish = JoinWish { discard: false, stage: true };
    let accepted = block(node.life.joiner.join_as(to.life.address, &token, wish, soon())).unwrap();
    let id = accepted.node;
    drop(accepted);
    node.new_life();
    node.see("admitted", |view| view.state.member(id).is_some());
    id
}

/// Return the ids of the transfers in progress. One id is one rebalancing.
fn under_way(view: &View) -> std::collections::BTreeSet<u64> {
    view.state.ring.transfers().map(|(_, transfer)| transfer.id.0).collect()
}

#[test]
fn a_staged_joiner_waits_through_everything_until_a_commit_from_any_node() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let mut fourth = dirs.start("d");
    let waiting = join_to_wait(&mut fourth, &second);
    let waits = |view: &Arc<View>| view.state.member(waiting).is_some_and(|member| member.waits());
    first.see("staged", |view| view.state.staged == [Change::Join { node: waiting }]);
    // Others join while this node waits, and the claimant skips this node.
    let mut fifth = dirs.start("e");
    join(&mut fifth, &first);
    settle(&first);
    assert!(waits(&first.view()) && !first.view().state.holds(waiting));
    // The stage survives the claimant and a restart of the node.
    let fourth = Running::start(fourth.stop());
    assert!(!fourth.view().serves());
    let leader = first.life.cluster.leader().unwrap();
    let (gone, left): (Vec<_>, Vec<_>) =
        [first, second, third, fifth].into_iter().partition(|node| node.life.cluster.me() == leader);
    let gone: Vec<_> = gone.into_iter().map(Running::stop).collect();
    // The next decision is made by another claimant.
    drop(token(&left[0]));
    assert_ne!(left[0].life.cluster.leader(), Some(leader));
    assert!(waits(&left[0].view()));

    // Any node shows and commits the plan, including the waiting one.
    let leaver = left[1].life.cluster.me();
    block(left[2].life.cluster.stage(Change::Leave { node: leaver }, soon())).unwrap();
    let shown = block(left[0].life.cluster.plan(soon())).unwrap().unwrap();
    assert_eq!(shown.changes, [Change::Join { node: waiting }, Change::Leave { node: leaver }]);
    let _back: Vec<_> = gone.into_iter().map(Running::start).collect();
    let changed = block(fourth.life.cluster.commit(Some(&shown.id()), soon())).unwrap();
    assert_eq!(changed.plan.table, shown.table);
    let view = fourth.see("decided", |view| view.index() >= changed.index);
    assert!(view.state.staged.is_empty() && view.serves());
    assert!(under_way(&view).iter().all(|id| *id == changed.index), "one rebalancing");
    settle(&fourth);
    fourth.see("gone", |view| view.state.member(leaver).is_none());
    assert!(owned(&fourth.view().state, waiting) > 0);
    let error = block(fourth.life.cluster.commit(None, soon())).unwrap_err();
    assert_eq!(error, ProposeError::Refused(Refusal::NothingStaged));
}

#[test]
fn a_waiting_node_can_leave_and_one_that_was_forgotten_can_be_staged_again() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let mut second = dirs.start("b");
    let waiting = join_to_wait(&mut second, &first);
    block(first.life.cluster.clear_staged(soon())).unwrap();
    let error = block(first.life.cluster.propose(Command::Joined { node: waiting }, soon())).unwrap_err();
    assert!(matches!(error, ProposeError::Refused(Refusal::Waits(_))), "{error}");
    block(second.life.cluster.stage(Change::Join { node: waiting }, soon())).unwrap();
    first.see("staged again", |view| !view.state.staged.is_empty());
    block(first.life.cluster.leave(Some("b@127.0.0.1"), soon())).unwrap();
    let (reason, _) = second.end();
    assert_eq!(reason.unwrap(), StopReason::Removed);
    let view = first.see("forgotten", |view| view.state.member(waiting).is_none());
    assert!(view.state.staged.is_empty(), "nothing waits for a node that went");
}

#[test]
fn a_newcomer_takes_the_places_of_a_node_that_then_ends_by_itself() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let old = second.life.cluster.me();
    let mut fourth = dirs.start("d");
    let new = join_to_wait(&mut fourth, &first);
    let before = first.view().state.ring.clone();
    let changed = block(third.life.cluster.change(Change::Replace { old, new }, soon())).unwrap();
    assert!(changed.plan.moves.iter().all(|one| (one.from, one.to) == (old, new)));
    let (reason, _) = second.end();
    assert_eq!(reason.unwrap(), StopReason::Removed);
    settle(&first);
    let after = first.see("gone", |view| view.member(old).is_none());
    for (id, partition) in before.iter() {
        let expected: Vec<_> =
            partition.replicas.iter().map(|node| if *node == old { new } else { *node }).collect();
        assert_eq!(after.state.ring.partition(id).replicas, expected);
    }
    assert!(after.state.losses.is_empty());
}

#[test]
fn a_removed_node_is_refused_by_all_and_stops_when_it_is_back_and_keeps_its_directory() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    block(first.life.cluster.propose(deploy("kv"), soon())).unwrap();
    let gone = third.life.cluster.me();
    let owned_before = owned(&first.view().state, gone);
    let config = third.stop();
    let changed = block(second.life.cluster.change(Change::Remove { node: gone }, soon())).unwrap();
    let view = first.see("removed", |view| view.index() >= changed.index);
    assert!(view.state.members[&gone].banned && !view.state.holds(gone));
    assert_eq!(view.state.losses.len(), owned_before);
    let name = "c@127.0.0.1".to_owned();
    let loss = Loss { node: gone, name, index: changed.index };
    assert!(view.state.losses.values().all(|noted| *noted == loss));
    // Its copy of the cluster's state does not include the removal: it learns it from the first peer it
    // calls.
    let identity = std::fs::read(config.data.join("IDENTITY")).unwrap();
    assert_removed(config.clone());
    assert_eq!(std::fs::read(config.data.join("IDENTITY")).unwrap(), identity);
    first.see_voters(1);
    block(first.life.cluster.acknowledge(changed.index, soon())).unwrap();
    second.see("seen to", |view| view.state.losses.is_empty());
}

#[test]
fn a_node_that_was_only_cut_off_stops_once_it_hears_that_it_was_removed() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let gone = third.life.cluster.me();
    // The state machine does not know which nodes are up: the node keeps running.
    block(first.life.cluster.change(Change::Remove { node: gone }, soon())).unwrap();
    let (reason, _) = third.end();
    assert!(matches!(reason, Ok(StopReason::Removed)), "{reason:?}");
    drop(second);
}

#[test]
fn a_node_marked_down_keeps_its_share_and_is_a_member_again_when_it_is_back() {
    let dirs = Dirs::new();
    let [first, _second, third] = three(&dirs);
    let away = third.life.cluster.me();
    let share = owned(&first.view().state, away);
    let config = third.stop();
    block(first.life.cluster.mark(away, true, soon())).unwrap();
    let view = first.see("down", |view| view.member(away).unwrap().status == MemberStatus::Down);
    assert_eq!(owned(&view.state, away), share);
    assert!(view.state.is_balanced());
    let _third = Running::start(config);
    let view = first.see("back", |view| view.member(away).unwrap().status == MemberStatus::Member);
    assert_eq!(owned(&view.state, away), share);
}

#[test]
fn zone_and_weight_of_a_restart_reach_the_members_and_move_the_ring() {
    let dirs = Dirs::new();
    let [first, second, third] = three(&dirs);
    let id = second.life.cluster.me();
    let config = second.stop();
    let (zone, weight) = (Some("west".to_owned()), Some(3));
    let second = Running::start(NodeConfig { zone: zone.clone(), weight, ..config });
    let view = first.see("said", |view| view.member(id).is_some_and(|m| m.weight == 3 && m.zone == zone));
    assert!(view.state.member(third.life.cluster.me()).unwrap().zone.is_none());
    settle(&first);
    let view = first.see("more", |view| owned(&view.state, id) > 6);
    assert!(view.state.is_balanced());
    // Without a repeated option, the setting stays.
    let second = Running::start(NodeConfig { zone: None, weight: None, ..second.stop() });
    block(second.life.cluster.propose(deploy("kv"), soon())).unwrap();
    let view = second.see("later", |view| view.module("kv").is_some());
    assert_eq!((view.member(id).unwrap().weight, view.member(id).unwrap().zone.clone()), (3, zone));
}

#[test]
fn a_node_that_insists_on_another_ring_is_refused_and_one_that_does_not_takes_the_clusters() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let size = RingSize::try_from(64).unwrap();
    let insists = Running::start(NodeConfig { ring_size: Some(size), ..dirs.config("b") });
    let error = try_join(&insists, &first, &token(&first)).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("16 partitions") && text.contains("--ring-size 64"), "{text}");
    assert!(matches!(error, JoinError::Refused(Refusal::BadSetting(_))));
    assert_eq!(first.view().state.members.len(), 1);
    let config = insists.stop();
    let mut second = Running::start(NodeConfig { ring_size: None, ..config });
    let accepted = try_join(&second, &first, &token(&first)).unwrap();
    assert_eq!(accepted.former_ring_size, Some(size));
    assert_eq!(u32::from(accepted.ring_size), 16);
    drop(accepted);
    second.new_life();
    assert_eq!(second.view().state.ring.size, first.view().state.ring.size);
}
