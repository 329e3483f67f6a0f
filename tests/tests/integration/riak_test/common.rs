//! What the scenarios share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use annulus_tests::chaos::{Expected, Watch};
use annulus_tests::harness::{Cluster, LIMIT, Node, Ran};
use annulus_tests::load::{Load, Settings};

/// A load that leaves a core to those who are looked at.
pub fn settings() -> Settings {
    let rest = std::time::Duration::from_millis(3);
    Settings { clients: 6, keys: 1_500, rest, ..Settings::default() }
}

/// Waits until these nodes, and no others, share the ring evenly, all know so and nothing moves.
pub fn settled(cluster: &Cluster, nodes: &[usize]) {
    let expected: Expected =
        nodes.iter().map(|&node| (cluster[node].name.clone(), cluster[node].data.clone())).collect();
    let (watch, began) = (Watch::new(expected), Instant::now());
    while watch.settled_after(began).is_none() {
        let amiss = || watch.latest().map(|look| look.amiss).unwrap_or_default();
        assert!(began.elapsed() < LIMIT, "it does not settle: {:#?}", amiss());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Every member's status by its name, as a node says.
pub fn members(node: &Node) -> BTreeMap<String, String> {
    let rows = node.json(&["members"]).json();
    let word = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (word(row, "node"), word(row, "status"))).collect()
}

/// The members that are not removed.
pub fn present(node: &Node) -> BTreeSet<String> {
    members(node).into_iter().filter(|(_, status)| status != "removed").map(|(name, _)| name).collect()
}

/// Their names.
pub fn names(cluster: &Cluster, nodes: &[usize]) -> BTreeSet<String> {
    nodes.iter().map(|&node| cluster[node].name.clone()).collect()
}

/// Whom a node takes for the claimant, by number.
pub fn claimant(cluster: &Cluster, asked: usize) -> Option<usize> {
    let name = cluster[asked].json(&["status"]).json()["claimant"].as_str()?.to_owned();
    cluster.nodes().iter().position(|node| node.name == name)
}

/// A token of this node's cluster.
pub fn token(member: &Node) -> String {
    member.json(&["token"]).json()["token"].as_str().unwrap().to_owned()
}

/// It was refused, clearly: nothing was applied, the exit code says that the request failed, and
/// the message has these words.
pub fn refused(ran: &Ran, words: &str) {
    assert_eq!(ran.code, 1, "{ran:?}");
    let error = &ran.json()["error"];
    assert_eq!(error["state"], "not-applied", "{ran:?}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(words), "{words:?} is not in {message:?}");
}

/// It was done.
pub fn done(ran: &Ran) -> &Ran {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran
}

/// A load on these nodes, with every key put once and going on.
pub fn loaded(settings: Settings, cluster: &Cluster, entries: &[usize]) -> Load {
    let entries: Vec<&Node> = entries.iter().map(|&node| &cluster[node]).collect();
    let load = Load::new(settings, &entries);
    load.fill();
    load.go();
    load
}
