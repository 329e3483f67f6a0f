//! Helpers shared by the scenarios.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use annulus_tests::chaos::{Expected, Watch};
use annulus_tests::harness::{Cluster, LIMIT, Node, Ran};
use annulus_tests::load::{Load, Settings};

/// Return the settings of a load that leaves CPU time to the nodes under test.
pub fn settings() -> Settings {
    let rest = std::time::Duration::from_millis(3);
    Settings { clients: 6, keys: 1_500, rest, ..Settings::default() }
}

/// Wait until these nodes, and no others, share the ring evenly, all know so, and no transfer is pending.
pub fn settled(cluster: &Cluster, nodes: &[usize]) {
    let expected: Expected =
        nodes.iter().map(|&node| (cluster[node].name.clone(), cluster[node].data.clone())).collect();
    let (watch, began) = (Watch::new(expected), Instant::now());
    while watch.settled_after(began).is_none() {
        let amiss = || watch.latest().map(|look| look.amiss).unwrap_or_default();
        assert!(began.elapsed() < LIMIT, "the cluster does not settle: {:#?}", amiss());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Return each member's status by name, as a node knows it.
pub fn members(node: &Node) -> BTreeMap<String, String> {
    let rows = node.json(&["members"]).json();
    let word = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (word(row, "node"), word(row, "status"))).collect()
}

/// Return the names of the members that are not removed.
pub fn present(node: &Node) -> BTreeSet<String> {
    members(node).into_iter().filter(|(_, status)| status != "removed").map(|(name, _)| name).collect()
}

/// Return the names of these nodes.
pub fn names(cluster: &Cluster, nodes: &[usize]) -> BTreeSet<String> {
    nodes.iter().map(|&node| cluster[node].name.clone()).collect()
}

/// Return the index of the node that a node considers the claimant.
pub fn claimant(cluster: &Cluster, asked: usize) -> Option<usize> {
    let name = cluster[asked].json(&["status"]).json()["claimant"].as_str()?.to_owned();
    cluster.nodes().iter().position(|node| node.name == name)
}

/// Return a join token of this node's cluster.
pub fn token(member: &Node) -> String {
    member.json(&["token"]).json()["token"].as_str().unwrap().to_owned()
}

/// Check that a verb was refused: exit code 1, state `not-applied`, and `words` in the message.
pub fn refused(ran: &Ran, words: &str) {
    assert_eq!(ran.code, 1, "{ran:?}");
    let error = &ran.json()["error"];
    assert_eq!(error["state"], "not-applied", "{ran:?}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(words), "{words:?} is not in {message:?}");
}

/// Check that a verb succeeded.
pub fn done(ran: &Ran) -> &Ran {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran
}

/// Start a load on these nodes, with every key put once and the mix running.
pub fn loaded(settings: Settings, cluster: &Cluster, entries: &[usize]) -> Load {
    let entries: Vec<&Node> = entries.iter().map(|&node| &cluster[node]).collect();
    let load = Load::new(settings, &entries);
    load.fill();
    load.go();
    load
}
