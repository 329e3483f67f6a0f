//! `recover --force` in split clusters: partitions that are not served are reported, and nothing is deleted.

use std::collections::BTreeSet;
use std::time::Instant;

use annulus_tests::harness::until;

use annulus_tests::splits::{RING, World};

/// Split the nodes, recover each side without a majority, write on all sides, and reunite them. No partition
/// changes its owner, so no item is lost.
fn part_and_meet(world: &mut World, sides: &[&[usize]]) {
    world.together();
    let began = Instant::now();
    let mut parted = world.part(sides);
    for side in &mut parted {
        world.recover(side);
        world.write(side);
        let (found, owned) = (world.check(side), world.owned(&side.nodes));
        assert_eq!(
            (&found.served, &side.written),
            (&owned, &owned),
            "each side serves the partitions that it owns"
        );
        assert!(found.lost.is_empty(), "{found:?}");
        if side.recovered {
            let named: BTreeSet<u16> = side.nodes.iter().flat_map(|node| world.named(*node)).collect();
            assert!(
                found.refused.is_subset(&named),
                "a recovery reports the unreachable partitions: {named:?}, {found:?}"
            );
        }
    }
    assert!(parted.iter().filter(|side| !side.recovered).count() <= 1, "two majorities: {parted:?}");
    // The sides reunite one after another, so that some nodes change their lineage more than once.
    for met in 2..=sides.len() {
        world.meet(&sides[..met]);
    }
    let found = world.settle(&parted);
    assert!(found.refused.is_empty() && found.lost.is_empty(), "{found:?}");
    println!("{sides:?}: {:?}", began.elapsed());
}

/// Cut off one node, the survivor, while the others give partitions to a node that has just joined. The
/// survivor recovers alone, from a state without these flips; when all reunite, its lineage wins.
fn flips_that_a_survivor_does_not_know(world: &mut World, survivor: usize) {
    let first = (0..3).find(|node| *node != survivor).unwrap();
    world.cluster[first].json(&["transfers", "pause"]).text();
    let newcomer = world.cluster.add(&[]);
    let _joining = world.cluster[newcomer].begin_join(&world.cluster[first]);
    let all = world.everybody();
    world.until_alive(&all);
    let comes = until("transfers to the new node are pending", || {
        let comes = world.pending(survivor);
        (!comes.is_empty() && all.iter().all(|node| world.pending(*node) == comes)).then_some(comes)
    });
    let others: Vec<usize> = all.iter().copied().filter(|node| *node != survivor).collect();
    let mut sides = world.part(&[&[survivor], &others]);
    world.cluster[first].json(&["transfers", "resume"]).text();
    let kept = world.owned(&[survivor]);
    let flipped: BTreeSet<u16> = until("all nodes but the survivor have handed over their share", || {
        let waits = world.pending(first);
        waits.is_subset(&kept).then(|| &comes - &waits)
    });
    assert!(!flipped.is_empty(), "{comes:?}");
    for side in &mut sides {
        world.recover(side);
        world.write(side);
        let found = world.check(side);
        assert_eq!((&found.served, found.lost.len()), (&side.written, 0), "{found:?}");
    }
    assert_eq!(sides.iter().map(|side| side.recovered).collect::<Vec<_>>(), [true, false]);
    assert_eq!(world.named(survivor), all_but(&kept), "a recovery reports the unreachable partitions");
    // The survivor recovered from a state in which transfers were paused.
    world.cluster[survivor].json(&["transfers", "resume"]).text();
    world.meet(&[&[survivor], &others]);
    // The recovered state does not contain the flips: the former owners own these partitions again, without
    // items.
    until("every node reports the partitions that the newcomer keeps", || {
        let name = world.cluster[newcomer].name.clone();
        world.all_name(&all, &name, &flipped).then_some(())
    });
    assert_eq!(world.aside(&[newcomer]), flipped.len() as u64, "the newcomer deletes nothing");
    let found = world.settle(&sides);
    assert_eq!((&found.lost, found.refused.len()), (&flipped, 0), "{found:?}");
    assert_eq!(
        world.aside(&[newcomer]),
        flipped.len() as u64,
        "not even after an operator has acknowledged the losses"
    );
}

/// Return all other partitions.
fn all_but(these: &BTreeSet<u16>) -> BTreeSet<u16> {
    (0..RING).filter(|id| !these.contains(id)).collect()
}

/// Kill nodes, recover the rest, and start the killed nodes again: their items are on disk, and none is lost.
fn kill_and_start(world: &mut World, killed: &[usize]) {
    let all = world.everybody();
    let left: Vec<usize> = all.iter().copied().filter(|node| !killed.contains(node)).collect();
    for node in killed {
        world.cluster[*node].kill();
    }
    world.until_alive(&left);
    let mut side = world.part(&[&left]).remove(0);
    world.recover(&mut side);
    world.write(&mut side);
    let found = world.check(&side);
    assert_eq!(found.served, world.owned(&left), "{found:?}");
    if side.recovered {
        assert!(found.refused.is_subset(&world.named(left[0])), "{found:?}");
    }
    for node in killed {
        world.cluster[*node].start();
    }
    world.together();
    let found = world.settle(&[side]);
    assert_eq!((found.lost.len(), found.refused.len()), (0, 0), "{found:?}");
}

#[test]
fn after_a_recovery_unserved_partitions_are_reported_and_nothing_is_deleted() {
    let mut world = World::begin(3);
    flips_that_a_survivor_does_not_know(&mut world, 1);
    part_and_meet(&mut world, &[&[0, 1], &[2, 3]]);
    kill_and_start(&mut world, &[0, 1, 3]);
    assert_eq!(world.everybody(), [0, 1, 2, 3]);
}

/// A node joins one side of a split; the other side is recovered and wins. The newcomer is not a member of the
/// winning lineage: it keeps its items, serves nothing, and can rejoin as a new node.
#[test]
fn a_node_that_joined_the_losing_side_keeps_its_items() {
    let mut world = World::begin(3);
    let all_but_newcomer = [0, 1, 2];
    world.part(&[&[2], &[0, 1]]);
    let newcomer = world.cluster.add(&[]);
    world.cut(&[&[2], &[newcomer]]);
    // Partitions of the node behind the cut cannot move, so the join does not complete.
    let _joining = world.cluster[newcomer].begin_join(&world.cluster[0]);
    let given = until("the newcomer has its share of the reachable nodes' partitions", || {
        let waits = world.pending(0);
        // Ask a member: until the newcomer is admitted, it has a separate ring.
        let has = &world.owned(&[0, newcomer]) - &world.owned(&[0]);
        let given = !has.is_empty() && waits.is_subset(&world.owned(&[2]));
        given.then_some(has)
    });
    let mut sides = world.part(&[&[2], &[0, 1, newcomer]]);
    for side in &mut sides {
        world.recover(side);
        world.write(side);
        assert_eq!(world.check(side).served, world.owned(&side.nodes));
    }
    assert!(sides[0].recovered && sides[1].written.is_superset(&given), "{sides:?}");
    world.heal(&[&[2], &[0, 1, newcomer]]);
    let told = world.alerted(&[newcomer], "outside: ");
    assert!(told.contains("--rejoin-as-new"), "{told}");
    world.one(&all_but_newcomer);
    let status = world.status(newcomer);
    assert_eq!((&status["vnodes"], &status["aside"]), (&0.into(), &given.len().into()), "{status}");
    let node = &world.cluster[newcomer];
    let refused = node.call("kv", "get", &["k"]).unwrap_err();
    assert_eq!((&refused["code"], &refused["state"]), (&"not-ready".into(), &"not-applied".into()));
    for verb in [&["leave"][..], &["token"], &["undeploy", "kv", "--yes"], &["recover", "--force"]] {
        let ran = node.json(verb);
        assert_eq!(ran.json()["error"]["code"], "not-allowed", "{verb:?}: {ran:?}");
        assert!(ran.stdout.contains("recovered without this node"), "{verb:?}: {ran:?}");
    }
    // The current owners of the newcomer's partitions report the possible loss.
    world.alerted(&all_but_newcomer, "possible-loss: ");
    let side = sides.remove(0);
    let found = world.check(&annulus_tests::splits::Side { nodes: all_but_newcomer.to_vec(), ..side });
    assert!(given.is_subset(&found.lost) && found.refused.is_empty(), "{given:?}, {found:?}");
    world.cluster.nodes_mut()[newcomer].start_anew();
    world.cluster[newcomer].join(&world.cluster[0]);
    world.one(&[0, 1, 2, newcomer]);
}

/// The majority removes the other nodes while they recover on their own. No node ends or adopts the other
/// side's partitions: both sides serve, and both report the other lineage.
#[test]
fn a_recovered_side_that_was_removed_and_the_majority_both_serve_and_report_each_other() {
    let world = &mut World::begin(4);
    let (left, right) = ([0, 1], [2, 3]);
    let mut sides = world.part(&[&left, &right]);
    sides.iter_mut().for_each(|side| world.recover(side));
    let remover = &sides.iter().find(|side| !side.recovered).expect("a side has a majority").nodes.clone();
    for gone in (0..4).filter(|node| !remover.contains(node)) {
        let name = world.cluster[gone].name.clone();
        let ran = world.cluster[remover[0]].json(&["remove", &name, "--no-wait"]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    world.one(remover);
    sides.iter_mut().for_each(|side| world.write(side));
    world.heal(&[&left, &right]);
    let told = world.alerted(&[0, 1, 2, 3], "two-histories: ");
    assert!(told.contains("--rejoin-as-new"), "{told}");
    for side in &sides {
        let found = world.check(side);
        assert!(
            found.served == side.written && side.written == world.owned(&side.nodes),
            "{side:?}, {found:?}"
        );
        assert!(found.lost.is_empty() && world.status(side.nodes[0])["quorum"] == true, "{found:?}");
    }
    // The recovered side is abandoned.
    let given_up =
        sides.iter().find(|side| side.recovered).expect("the other side has no majority").nodes.clone();
    for node in given_up {
        world.cluster.nodes_mut()[node].start_anew();
        world.cluster[node].join(&world.cluster[remover[0]]);
    }
    world.one(&[0, 1, 2, 3]);
}

/// Return every way to divide four nodes into two or more sides.
fn all_splits() -> Vec<Vec<Vec<usize>>> {
    let mut splits: Vec<Vec<Vec<usize>>> = vec![Vec::new()];
    for node in 0..4 {
        splits = splits
            .into_iter()
            .flat_map(|split| {
                (0..=split.len()).map(move |at| {
                    let mut split = split.clone();
                    match split.get_mut(at) {
                        Some(side) => side.push(node),
                        None => split.push(vec![node]),
                    }
                    split
                })
            })
            .collect();
    }
    splits.retain(|split| split.len() > 1);
    splits
}

#[test]
#[ignore = "takes minutes: run it by hand"]
fn in_every_split_unserved_partitions_are_reported_and_nothing_is_deleted() {
    let splits = all_splits();
    assert_eq!(splits.len(), 14);
    for survivor in 0..3 {
        let mut world = World::begin(3);
        flips_that_a_survivor_does_not_know(&mut world, survivor);
        for split in &splits {
            let sides: Vec<&[usize]> = split.iter().map(Vec::as_slice).collect();
            part_and_meet(&mut world, &sides);
            let killed = split.iter().skip(1).flatten().copied().collect::<Vec<_>>();
            let (began, kept) = (Instant::now(), killed.len());
            kill_and_start(&mut world, &killed);
            println!("{kept} killed: {:?}", began.elapsed());
        }
        assert_eq!(world.everybody(), [0, 1, 2, 3]);
    }
}
