//! Asserts the table of `examples/claim_table`: the claim is never worse than riak_core's rules on the same
//! changes.
#![allow(clippy::unwrap_used)]

#[path = "../examples/claim_table/riak.rs"]
mod riak;
#[path = "../examples/claim_table/scenarios.rs"]
mod scenarios;

use scenarios::{WAYS, Way, run, scenarios, sum};

/// The factor by which a whole scenario may move more replicas than rules that leave nodes less evenly
/// loaded. It is the cost of balance.
const FOR_BALANCE: f64 = 1.03;

fn never_worse(q: usize, n: usize) {
    for scenario in scenarios() {
        let ours = sum(&run(&scenario, Way::Annulus, q, n));
        assert_eq!((ours.repeated_nodes, ours.repeated_locations), (0, 0), "{}", scenario.name);
        assert!(ours.owner_spread <= 1, "{}: {ours:?}", scenario.name);
        for (name, way) in &WAYS[1..] {
            let theirs = sum(&run(&scenario, *way, q, n));
            let said = format!("{}, ring {q}, n {n}, {name}: {theirs:?}, ours: {ours:?}", scenario.name);
            assert!(ours.owners <= theirs.owners, "{said}");
            assert!(ours.owner_spread <= theirs.owner_spread, "{said}");
            // Locations of different sizes cannot be both apart and evenly loaded.
            let repeats = theirs.repeated_nodes + theirs.repeated_locations > 0;
            assert!(ours.replica_spread <= theirs.replica_spread || repeats, "{said}");
            let less_even = theirs.replica_spread > ours.replica_spread || repeats;
            let allowed = theirs.replicas as f64 * if less_even { FOR_BALANCE } else { 1.0 };
            assert!(ours.replicas as f64 <= allowed, "{said}");
        }
    }
}

#[test]
fn on_a_ring_of_64() {
    never_worse(64, 3);
    never_worse(64, 4);
}

/// Riak's rules for locations, with their checks, take long on a ring of this size.
#[test]
#[ignore = "takes long: add `-- --ignored`"]
fn on_a_ring_of_256() {
    never_worse(256, 3);
    never_worse(256, 4);
}

/// Checks that the rules in `riak.rs`, against which the claim is compared, behave as documented.
#[test]
fn riaks_rules_behave_as_documented() {
    use riak::{Version, join, leave, repeated_nodes};
    let nodes: Vec<(usize, usize)> = (0..5).map(|node| (node, node)).collect();
    let mut ring = vec![0; 64];
    for count in 2..=5 {
        ring = join(Version::V2, &ring, &nodes[..count], count - 1, 3);
    }
    // Five nodes are enough for n = 3: each has 12 or 13, except for v2's slack, and none repeats.
    assert_eq!(repeated_nodes(&ring, 3), 0);
    let owned = |ring: &Vec<usize>, node| ring.iter().filter(|owner| **owner == node).count();
    assert!((0..5).all(|node| owned(&ring, node) >= 12), "{ring:?}");
    // 64 is not a multiple of three, so with three nodes the tail repeats a node of the head.
    let three = join(Version::V2, &vec![0; 64], &nodes[..3], 2, 3);
    assert!(repeated_nodes(&three, 3) > 0);
    // A leave moves the leaver's partitions and nothing else.
    let left = leave(Version::V2, &ring, &nodes[..4], 4, 3);
    let moved = ring.iter().zip(&left).filter(|(old, new)| old != new).count();
    assert_eq!((moved, owned(&left, 4)), (owned(&ring, 4), 0));
    // v4 is balanced where v2 need not be.
    let five = join(Version::V4, &left, &nodes, 4, 3);
    assert!((0..5).all(|node| (12..=13).contains(&owned(&five, node))), "{five:?}");
    assert_eq!(repeated_nodes(&five, 3), 0);
}
