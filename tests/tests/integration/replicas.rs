//! Modules with several replicas, on real processes: what was acknowledged outlives a node, and the others serve meanwhile.

use std::time::{Duration, Instant};

use annulus_tests::book::Book;
use annulus_tests::guests::component;
use annulus_tests::harness::{Cluster, Node, Ran, ring, until};
use annulus_tests::load::{Load, Settings};
use serde_json::Value;

use crate::durable::losses;

/// Longest time from the death of a node until its peers send it no more requests.
const NOTICED: Duration = Duration::from_millis(1_500);

fn deploy(cluster: &Cluster, guest: &str, words: &[&str]) -> Ran {
    let name = format!("{}.wasm", guest.replace('/', "-"));
    let file = cluster.keep(&name, &component(guest));
    cluster[0].json(&[&["deploy", file.to_str().unwrap()], words].concat())
}

fn deployed(cluster: &Cluster, guest: &str, words: &[&str]) {
    let ran = deploy(cluster, guest, words);
    assert_eq!(ran.code, 0, "{ran:?}");
}

fn refused(ran: &Ran, reason: &str) {
    let error = ran.json()["error"].clone();
    assert!(error["message"].as_str().unwrap().contains(reason), "{error}");
}

fn replicas(node: &Node) -> Value {
    node.json(&["status"]).json()["replicas"].clone()
}

/// Wait until the replicas of every node are complete and have caught up.
fn complete(cluster: &Cluster) {
    until("every replica is complete", || {
        let whole = |node: &Node| {
            let replicas = replicas(node);
            replicas["building"] == 0 && replicas["behind"] == 0 && replicas["stores"] == 64
        };
        cluster.nodes().iter().all(whole).then_some(())
    });
}

fn settings() -> Settings {
    Settings { clients: 8, keys: 1_000, pad: 200, rest: Duration::from_millis(2), ..Settings::default() }
}

/// The tutorial's chapter 7: a node dies, the others answer for it, and it comes back.
fn outlives_a_node(storage: &str) {
    let mut cluster = Cluster::joined(3);
    deployed(&cluster, "guests/kv", &["--n", "3", "--storage", storage]);
    complete(&cluster);
    let load = Load::new(settings(), &[&cluster[0], &cluster[2]]);
    load.fill();
    load.go();
    for dead in [1, 2, 0] {
        let (left, right) = ((dead + 1) % 3, (dead + 2) % 3);
        load.enter(&[&cluster[left], &cluster[right]]);
        load.phase(&format!("node {dead} dies"));
        cluster[dead].kill();
        std::thread::sleep(NOTICED);
        load.phase(&format!("node {dead} is dead"));
        let before = load.report().requests();
        until("the others serve", || (load.report().requests() > before + 1_000).then_some(()));
        load.phase(&format!("node {dead} comes back"));
        cluster[dead].start();
        let began = Instant::now();
        complete(&cluster);
        println!("node {dead} is complete after {:?}", began.elapsed());
        let report = load.report();
        assert_eq!(report.phase(&format!("node {dead} is dead")).failed, 0, "{report}");
    }
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
    assert!(cluster.nodes().iter().all(|node| losses(node).is_empty()));
}

#[test]
fn durable_items_outlive_every_node_in_turn_while_the_others_serve() {
    outlives_a_node("durable");
}

#[test]
fn items_in_memory_outlive_every_node_in_turn_while_the_others_serve() {
    outlives_a_node("memory");
}

#[test]
fn too_few_replicas_are_refused_before_anything_runs_and_a_cluster_that_stops_loses_nothing() {
    let mut cluster = Cluster::joined(3);
    deployed(&cluster, "guests/kv", &["--n", "3"]);
    let row = &cluster[0].json(&["modules"]).json()[0];
    assert_eq!((&row["n"], &row["r"], &row["w"]), (&3.into(), &2.into(), &2.into()));
    let mut book = Book::new("kv", 100);
    book.put(&cluster[0], 0..200);
    complete(&cluster);
    cluster[1].kill();
    until("the death is noticed", || {
        let members = cluster[0].json(&["members"]).json();
        let dead = |row: &Value| row["node"] == cluster[1].name && row["alive"] == false;
        members.as_array().unwrap().iter().any(dead).then_some(())
    });
    book.put(&cluster[0], 100..300);
    cluster[2].kill();
    let error = until("the dead are noticed", || {
        let error = cluster[0].call("kv", "put", &["alone", "1"]).unwrap_err();
        (error["state"] == "not-applied").then_some(error)
    });
    assert_eq!(error["code"], "not-enough-replicas", "{error}");
    let error = cluster[0].call("kv", "get", &["k1"]).unwrap_err();
    assert_eq!((&error["code"], &error["state"]), (&"not-enough-replicas".into(), &"not-applied".into()));
    cluster[0].kill();
    cluster.nodes_mut().iter_mut().for_each(Node::start);
    complete(&cluster);
    for node in cluster.nodes() {
        let seen = book.read(node, 0..300);
        assert!(seen.is_whole(), "{seen:?}");
        assert_eq!(losses(node), [""; 0]);
    }
    let keys = until("every partition serves", || cluster[2].everywhere("kv", "keys").ok());
    assert_eq!(keys.len(), book.len());
}

#[test]
fn what_replicas_cannot_do_yet_is_refused_with_the_reason() {
    let mut cluster = Cluster::joined(2);
    refused(&deploy(&cluster, "guests/kv", &["--n", "3"]), "2 nodes");
    refused(&deploy(&cluster, "guests/memkv", &["--n", "2"]), "its own memory");
    let third = cluster.add(&[]);
    cluster[third].join(&cluster[0]);
    until("the third node has a share of every partition", || {
        let rings = cluster[0].json(&["ring"]).json();
        let partitions = rings["partitions"].as_array().unwrap();
        let full = |row: &Value| row["replicas"].as_array().unwrap().len() == 3;
        (partitions.iter().all(full) && ring(&cluster[0]).iter().all(|(_, next)| next.is_none()))
            .then_some(())
    });
    refused(&deploy(&cluster, "guests/kv", &["--n", "3", "--w", "4"]), "w is from 1 to n");
    deployed(&cluster, "guests/kv", &["--n", "3"]);
    refused(&deploy(&cluster, "guests/kv", &["--n", "2"]), "cannot change yet");
    refused(&cluster[0].json(&["leave"]), "cannot move partitions");
    // A node that joins gets nothing yet, and says why.
    let fourth = cluster.add(&[]);
    cluster[fourth].join(&cluster[0]);
    let status = cluster[0].json(&["status"]).json();
    let alerts = status["alerts"].as_array().unwrap();
    let tells = |alert: &Value| alert.as_str().unwrap().contains("kv has n=3");
    assert!(alerts.iter().any(tells), "{alerts:?}");
    cluster[fourth].call("kv", "put", &["k", "v"]).unwrap();
    assert_eq!(cluster[0].call("kv", "get", &["k"]).unwrap(), "v");
    // Once the module is gone the ring takes the node in.
    assert_eq!(cluster[0].json(&["undeploy", "kv"]).code, 0);
    until("the fourth node gets its share", || {
        let ring = ring(&cluster[0]);
        let owned = ring.iter().filter(|(owner, _)| *owner == cluster[fourth].name).count();
        (owned > 10 && ring.iter().all(|(_, next)| next.is_none())).then_some(())
    });
}
