//! Two processes of one node: a copy of a data directory is started while the original runs.

use std::path::Path;
use std::process::Command;

use annulus_tests::harness::{Cluster, Node, until};

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Create a second node that runs as the same node, on a copy of its directory.
fn copy_of(node: &Node, cluster: &Cluster, directory: &str) -> Node {
    let mut copied = Node::new(&format!("{directory}@h"), cluster.path(), &[]);
    copied.name.clone_from(&node.name);
    copy(&node.data, &copied.data);
    copied
}

fn alive(seen_from: &Node, name: &str) -> bool {
    let members = seen_from.json(&["members"]).json();
    members.as_array().unwrap().iter().any(|row| row["node"] == name && row["alive"] == true)
}

#[test]
fn a_copy_of_a_running_node_ends_and_the_node_continues() {
    let cluster = Cluster::joined(3);
    cluster.deploy("guests/kv");
    let good = &cluster[2];
    // Freeze the node during the copy, so that the copy is in the state that a power cut would leave.
    good.pause();
    let mut copied = copy_of(good, &cluster, "copied");
    good.resume();
    until("the others hear the node again", || alive(&cluster[0], &good.name).then_some(()));
    good.call("kv", "put", &["kept", "one"]).unwrap();
    for again in 0..3 {
        let ended = copied.start_in_vain();
        assert_eq!(ended.code, 1, "{again}: {ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("runs as this node") || said.contains("not the newest"), "{again}: {said}");
        assert!(alive(&cluster[0], &good.name) && alive(&cluster[1], &good.name), "{again}");
        assert_eq!(good.call("kv", "get", &["kept"]).unwrap(), "one", "{again}");
    }
    // The copy's attempts do not prevent the node's own next start.
    let mut cluster = cluster;
    cluster[2].stop();
    cluster[2].start();
    until("the node is back", || alive(&cluster[0], &cluster[2].name).then_some(()));
    assert!(cluster[2].is_running());
}

#[test]
fn an_older_copy_ends_and_the_newest_continues() {
    let mut cluster = Cluster::joined(3);
    cluster.deploy("guests/kv");
    cluster[2].stop();
    let mut older = copy_of(&cluster[2], &cluster, "older");
    // The original has started once more often than the copy.
    cluster[2].start();
    let name = cluster[2].name.clone();
    until("the node is back", || alive(&cluster[0], &name).then_some(()));
    cluster[2].call("kv", "put", &["kept", "one"]).unwrap();
    for again in 0..2 {
        let ended = older.start_in_vain();
        assert_eq!(ended.code, 1, "{again}: {ended:?}");
        assert!(cluster[2].is_running());
        assert_eq!(cluster[2].call("kv", "get", &["kept"]).unwrap(), "one", "{again}");
    }
    // The copy of the stopped node now runs elsewhere for good, so the old directory is outdated.
    cluster[2].stop();
    let mut moved = copy_of(&cluster[2], &cluster, "moved");
    moved.start();
    until("the node is back", || alive(&cluster[0], &name).then_some(()));
    moved.call("kv", "put", &["kept", "two"]).unwrap();
    for again in 0..2 {
        let ended = cluster[2].start_in_vain();
        assert_eq!(ended.code, 1, "{again}: {ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("not the newest") || said.contains("runs as this node"), "{said}");
        assert!(moved.is_running());
        assert_eq!(moved.call("kv", "get", &["kept"]).unwrap(), "two", "{again}");
    }
}
