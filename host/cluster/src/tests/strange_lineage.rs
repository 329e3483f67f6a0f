//! Lineages that are started by a node unknown to the others, because it joined after their last update.

use super::*;

/// Start three nodes and a fourth that joined without the third's knowledge. The first two are lost, and the
/// other two cannot reach each other.
async fn strangers() -> World {
    let mut world = World::of_three().await;
    let third = world.nodes[2].clone();
    world.nodes[..2].iter().for_each(|node| world.net.cut(&third, node));
    let until = soon();
    let leader = loop {
        if let Some(leader) = world.nodes[..2].iter().position(|node| node.inner.group.leads()) {
            break leader;
        }
        assert!(Instant::now() < until, "nobody leads");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    world.nodes.swap(0, leader);
    world.join(4).await;
    let fourth = world.nodes[3].clone();
    let [a, b, _, _] = &world.nodes[..] else { panic!() };
    world.split(&[&[a], &[b], &[&third], &[&fourth]]);
    world.nodes = vec![third, fourth];
    for node in &world.nodes {
        lonely(node).await;
    }
    let known = world.nodes[0].view();
    assert!(known.state.live_members().all(|member| member.id != world.nodes[1].me()));
    world
}

/// Reconnect the two that are left.
fn heal(world: &World) {
    let [third, fourth] = &world.nodes[..] else { panic!() };
    let pair = |(a, b): &(NodeUid, NodeUid)| {
        [third.uid(), fourth.uid()].contains(a) && [third.uid(), fourth.uid()].contains(b)
    };
    world.net.cut.lock().retain(|ways| !pair(ways));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_taken_from_the_node_that_reports_a_lineage_known_or_not() {
    let world = strangers().await;
    let [third, fourth] = &world.nodes[..] else { panic!() };
    let done = recover(fourth).await.unwrap();
    assert_eq!(done.adopted, [fourth.me()]);
    heal(&world);
    see(third, |view| view.state.lineage == done.lineage && view.serves()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_learns_of_a_newer_lineage_that_does_not_have_it_as_a_member() {
    let world = strangers().await;
    let [third, fourth] = &world.nodes[..] else { panic!() };
    let begun = recover(fourth).await.unwrap().lineage;
    // A second recovery makes it certain which of the two lineages is newer.
    third.inner.lineages.hear_of(fourth.uid(), begun);
    let newer = recover(third).await.unwrap().lineage;
    assert_eq!((begun.number, newer.number), (1, 2));
    heal(&world);
    see(fourth, |view| view.outside == Some(newer)).await;
    assert_eq!(third.view().state.lineage, newer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_can_adopt_anothers_recovery_recovers_nothing_itself() {
    let world = strangers().await;
    let [third, fourth] = &world.nodes[..] else { panic!() };
    let begun = recover(fourth).await.unwrap().lineage;
    let seen = third.survey().await;
    third.inner.lineages.hear_of(fourth.uid(), begun);
    heal(&world);
    let refused = third.recover((seen.state.lineage, seen.state.applied), &seen.answered).await;
    let refusal =
        matches!(&refused, Err(RecoverError::NotNeeded | RecoverError::Recovered | RecoverError::Changed));
    assert!(refusal, "{refused:?}");
    see(third, |view| view.state.lineage == begun).await;
}
