//! A durable module: its items survive the node's process, releases and moves, and end with the module.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use annulus_tests::book::Book;
use annulus_tests::guests::{component, component_with};
use annulus_tests::harness::{Cluster, Node, Ran, until};

/// Return the alerts of a node that report lost items.
pub(super) fn losses(node: &Node) -> Vec<String> {
    let status = node.json(&["status"]).json();
    let alerts = status["alerts"].as_array().unwrap().iter();
    let kinds = ["possible-loss", "items-set-aside"];
    let losses = alerts.filter_map(|alert| alert.as_str()).map(str::to_owned);
    losses.filter(|alert| kinds.iter().any(|kind| alert.contains(kind))).collect()
}

fn storage_of(node: &Node, module: &str) -> String {
    let modules = node.json(&["modules"]).json();
    let row = modules.as_array().unwrap().iter().find(|row| row["name"] == module).unwrap();
    row["storage"].as_str().unwrap().to_owned()
}

fn whole(book: &Book, node: &Node, keys: std::ops::Range<u32>) {
    let seen = book.read(node, keys);
    assert!(seen.is_whole(), "{seen:?}");
}

#[test]
fn items_survive_a_kill_and_an_orderly_restart_of_every_node() {
    let mut cluster = Cluster::joined(3);
    cluster.deploy("guests/kv");
    assert_eq!(storage_of(&cluster[0], "kv"), "durable");
    let mut book = Book::new("kv", 300);
    book.put(&cluster[0], 0..600);
    book.delete(&cluster[1], 0..100);
    book.put(&cluster[2], 50..80);
    for orderly in [false, true, false] {
        for node in cluster.nodes_mut() {
            if orderly { assert_eq!(node.stop(), Some(0)) } else { node.kill() }
        }
        cluster.nodes_mut().iter_mut().for_each(Node::start);
        until("every partition serves", || cluster[0].everywhere("kv", "keys").ok());
        for node in cluster.nodes() {
            whole(&book, node, 0..600);
            assert_eq!(losses(node), [""; 0]);
        }
        assert_eq!(cluster[1].everywhere("kv", "keys").unwrap().len(), book.len());
        // Each process also writes.
        book.put(&cluster[0], 100..200);
        book.delete(&cluster[0], 200..210);
    }
}

/// The kind of a module is chosen when it is deployed, and is then fixed.
#[test]
fn the_storage_of_a_module_is_chosen_once() {
    let mut cluster = Cluster::apart(1);
    let kv = cluster.keep("kv.wasm", &component("guests/kv"));
    let memkv = cluster.keep("memkv.wasm", &component("guests/memkv"));
    let deploy = |node: &Node, file: &Path, words: &[&str]| {
        node.json(&[&["deploy", file.to_str().unwrap()], words].concat())
    };
    let refused = |ran: Ran, reason: &str| {
        let error = ran.json()["error"].take();
        assert_eq!(error["state"], "not-applied", "{error}");
        assert!(error["message"].as_str().unwrap().contains(reason), "{error}");
    };
    let node = &cluster[0];
    refused(deploy(node, &memkv, &["--storage", "durable"]), "memory");
    assert_eq!(deploy(node, &memkv, &[]).code, 0);
    assert_eq!(deploy(node, &kv, &[]).code, 0);
    assert_eq!(deploy(node, &kv, &["--name", "fleeting", "--storage", "memory"]).code, 0);
    let kinds = [("memkv", "memory"), ("kv", "durable"), ("fleeting", "memory")];
    for (module, kind) in kinds {
        assert_eq!(storage_of(node, module), kind);
        node.call(module, "put", &["k", module]).unwrap();
    }
    refused(deploy(node, &kv, &["--storage", "memory"]), "durable");
    refused(deploy(node, &kv, &["--name", "fleeting", "--storage", "durable"]), "memory");
    // A release without the option keeps the kind.
    let next = cluster.keep("kv-2.wasm", &component_with("guests/kv", &["v2"]));
    assert_eq!(deploy(node, &next, &["--name", "fleeting"]).code, 0);
    assert_eq!(deploy(node, &next, &[]).code, 0);
    kinds.iter().for_each(|(module, kind)| assert_eq!(storage_of(node, module), *kind));

    cluster[0].kill();
    cluster[0].start();
    for (module, kind) in kinds {
        let kept = if kind == "durable" { module.into() } else { serde_json::Value::Null };
        assert_eq!(cluster[0].call(module, "get", &["k"]).unwrap(), kept, "{module}");
    }
    let lost = losses(&cluster[0]);
    assert!(lost.iter().all(|line| !line.contains(" kv")), "{lost:?}");
    assert!(["memkv", "fleeting"].iter().all(|name| lost.iter().any(|line| line.contains(name))), "{lost:?}");
}

#[test]
fn a_release_and_a_rollback_keep_the_items() {
    let mut cluster = Cluster::joined(2);
    cluster.deploy("guests/kv");
    let next = cluster.keep("kv-2.wasm", &component_with("guests/kv", &["v2"]));
    let mut book = Book::new("kv", 200);
    book.put(&cluster[0], 0..300);
    for round in 0..2 {
        let deployed = cluster[0].json(&["deploy".as_ref(), next.as_os_str()]);
        assert_eq!(deployed.code, 0, "{deployed:?}");
        let counts = cluster[1].everywhere("kv", "count").unwrap();
        let count: u64 = counts.iter().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(count, book.len() as u64);
        book.put(&cluster[1], 290..310 + round);
        whole(&book, &cluster[0], 0..320);
        // The releases also follow a crash.
        cluster[1].kill();
        cluster[1].start();
        until("every partition serves", || cluster[0].everywhere("kv", "keys").ok());
        assert_eq!(cluster[0].json(&["rollback", "kv"]).code, 0);
        assert!(cluster[1].call("kv", "count", &[]).is_err(), "the first release does not count");
        whole(&book, &cluster[1], 0..320);
    }
    assert!(cluster.nodes().iter().all(|node| losses(node).is_empty()));
}

/// Return the bytes that a directory occupies on disk.
fn occupied(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    // A file may be deleted between the listing and the question for its size.
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => occupied(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[test]
fn an_undeploy_frees_the_disk_and_the_next_module_of_the_name_is_empty() {
    let mut cluster = Cluster::apart_with(1, &["--ring-size", "8"]);
    cluster.deploy("guests/kv");
    // The journal beside the keyspaces has a fixed length and is used again.
    let items = cluster[0].data.join("items/keyspaces");
    let mut book = Book::new("kv", 100_000);
    book.put(&cluster[0], 0..400);
    let before =
        until("most items are in tables", || Some(occupied(&items)).filter(|bytes| *bytes > 16 << 20));
    assert_eq!(cluster[0].json(&["undeploy", "kv"]).code, 0);
    // A module of the same name is another module, before and after the sweep.
    cluster.deploy("guests/kv");
    assert_eq!(cluster[0].everywhere("kv", "keys").unwrap(), [""; 0]);
    cluster[0].call("kv", "put", &["k", "new"]).unwrap();
    until("the disk is freed", || (occupied(&items) < before / 4).then_some(()));
    cluster[0].kill();
    cluster[0].start();
    assert_eq!(cluster[0].everywhere("kv", "keys").unwrap(), ["k"]);
    assert_eq!(losses(&cluster[0]), [""; 0]);
}
