//! Nodes that reach each other only through a relay, at their advertised addresses.

use std::time::Duration;

use annulus_tests::harness::{Cluster, until};
use annulus_tests::relay::{Relay, Way};

/// Return the number of nodes that a node sees alive, including itself.
fn alive(cluster: &Cluster, node: usize) -> u64 {
    cluster[node].json(&["status"]).json()["alive"].as_u64().unwrap()
}

fn until_alive(cluster: &Cluster, wanted: [u64; 3]) {
    until(&format!("{wanted:?} alive"), || {
        [0, 1, 2].map(|node| alive(cluster, node)).eq(&wanted).then_some(())
    });
}

#[test]
fn nodes_dial_advertised_addresses_and_both_sides_notice_a_cut() {
    let cluster = Cluster::relayed(Relay::new(1), 3, &[]);
    for node in &cluster.nodes()[1..] {
        node.join(&cluster[0]);
    }
    cluster.deploy("guests/kv");
    let told: Vec<String> = cluster.nodes().iter().map(|node| node.advertise.unwrap().to_string()).collect();
    let rows = cluster[1].json(&["members"]).json();
    let listed: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["listen"].as_str().unwrap()).collect();
    assert_eq!(listed, told);
    for key in ["a", "b", "c", "d", "e"] {
        cluster[0].call("kv", "put", &[key, key]).unwrap();
        assert_eq!(cluster[2].call("kv", "get", &[key]).unwrap(), key);
    }
    let relay = cluster.relay();
    assert_eq!(relay.strangers(), 0, "nodes dial from the address on which they listen");
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
        assert!(relay.count(from, to).passed > 0, "{from} to {to}");
    }
    relay.isolate(2);
    until_alive(&cluster, [2, 2, 1]);
    relay.heal();
    until_alive(&cluster, [3, 3, 3]);
    // On a lossy line requests still succeed, because lost packets are sent again.
    for (from, to) in [(0, 1), (1, 0)] {
        relay.set(from, to, Way { drop: 0.1, delay: Duration::from_millis(5), ..Way::default() });
    }
    until("both directions have dropped some", || {
        for key in ["a", "b", "c", "d", "e"] {
            assert_eq!(cluster[0].call("kv", "get", &[key]).unwrap(), key);
            assert_eq!(cluster[1].call("kv", "get", &[key]).unwrap(), key);
        }
        (relay.count(0, 1).dropped > 0 && relay.count(1, 0).dropped > 0).then_some(())
    });
}
