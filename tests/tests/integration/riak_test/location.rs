//! riak_test `location` and `location_leave`: no two replicas of a partition are in one zone while there are
//! enough zones, also after nodes have left; and never two on one node.

use std::collections::{BTreeMap, BTreeSet};

use annulus_tests::harness::{Cluster, Node};

use super::common::{done, settled};

/// Number of replicas of a partition, if there are as many nodes.
const WIDTH: usize = 3;

/// Check that every partition's replicas are on as many nodes, and in as many zones, as possible.
fn spread(node: &Node, zones: usize) {
    let rows = node.json(&["members"]).json();
    let zone_of: BTreeMap<&str, &str> = rows
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["status"] != "removed")
        .map(|row| (row["node"].as_str().unwrap(), row["zone"].as_str().unwrap()))
        .collect();
    let (nodes, ring) = (zone_of.len().min(WIDTH), node.json(&["ring"]).json());
    for row in ring["partitions"].as_array().unwrap() {
        let replicas: Vec<&str> =
            row["replicas"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let distinct: BTreeSet<&str> = replicas.iter().copied().collect();
        let across: BTreeSet<&str> = replicas.iter().map(|name| zone_of[name]).collect();
        assert_eq!((replicas.len(), distinct.len()), (nodes, nodes), "{row}");
        assert_eq!(across.len(), zones.min(WIDTH), "{row}: {zone_of:?}");
    }
}

#[test]
fn replicas_are_in_different_zones_also_after_a_leave() {
    let mut cluster = Cluster::apart_with(1, &["--zone", "a"]);
    for zone in ["b", "c", "a", "b"] {
        let node = cluster.add(&["--zone", zone]);
        cluster[node].join(&cluster[0]);
    }
    settled(&cluster, &[0, 1, 2, 3, 4]);
    spread(&cluster[4], 3);
    // Two zones have two nodes each and can lose one.
    done(&cluster[1].json(&["leave", &cluster[0].name]));
    settled(&cluster, &[1, 2, 3, 4]);
    spread(&cluster[1], 3);
    // The only node of a zone leaves: three replicas on three nodes, in two zones.
    done(&cluster[1].json(&["leave", &cluster[2].name]));
    settled(&cluster, &[1, 3, 4]);
    spread(&cluster[3], 2);
}
