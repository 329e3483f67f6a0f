//! Modules with several replicas, on real processes: what was acknowledged outlives a node, and the others serve meanwhile.

use std::time::{Duration, Instant};

use annulus_tests::book::Book;
use annulus_tests::guests::component;
use annulus_tests::harness::{Cluster, Node, Ran, command, ring, until};
use annulus_tests::load::{Load, Settings};
use serde_json::Value;

use crate::durable::losses;

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

/// Wait until a node knows that another is dead: it sends that one no more requests.
fn noticed(node: &Node, dead: &str) {
    until("the death is noticed", || {
        let members = node.json(&["members"]).json();
        let is_dead = |row: &Value| row["node"] == dead && row["alive"] == false;
        members.as_array().unwrap().iter().any(is_dead).then_some(())
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
        noticed(&cluster[left], &cluster[dead].name);
        noticed(&cluster[right], &cluster[dead].name);
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
    noticed(&cluster[0], &cluster[1].name);
    book.put(&cluster[0], 100..300);
    noticed(&cluster[2], &cluster[1].name);
    callers_ask_for_replicas(&cluster[0]);
    cluster[2].kill();
    let error = until("the dead are noticed", || {
        let error = cluster[0].call("kv", "put", &["alone", "1"]).unwrap_err();
        (error["state"] == "not-applied").then_some(error)
    });
    assert_eq!(error["code"], "not-enough-replicas", "{error}");
    assert!(!cluster[0].call("kv", "get", &["asked", "--r", "one"]).unwrap().is_null());
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
    // Before the deaths were noticed, a put may have run with an unknown outcome.
    assert_eq!(
        keys.iter().filter(|key| !["alone", "asked"].contains(&key.as_str().unwrap())).count(),
        book.len()
    );
}

/// Check that a call may ask for other quorums than its module, while one of three members is dead.
fn callers_ask_for_replicas(node: &Node) {
    let asked = "kept by two";
    let code = |command, words: &[&str]| node.call("kv", command, words).unwrap_err()["code"].clone();
    node.call("kv", "put", &["asked", asked, "--w", "2", "--r", "quorum", "--strict"]).unwrap();
    assert_eq!(code("put", &["asked", "2", "--w", "all"]), "not-enough-replicas");
    assert_eq!(code("get", &["asked", "--r", "all"]), "not-enough-replicas");
    for r in ["one", "2"] {
        assert_eq!(node.call("kv", "get", &["asked", "--r", r]).unwrap(), asked, "{r}");
    }
    assert_eq!(code("get", &["asked", "--r", "4"]), "bad-arguments");
    assert_eq!(code("get", &["asked", "--w", "one"]), "bad-arguments");
    assert_eq!(code("get", &["asked", "--strict"]), "bad-arguments");
    let ran = node.cli(&["call", "kv", "keys", "--r", "2"]);
    assert!(ran.code == 1 && ran.stderr.contains("one replica of each partition"), "{ran:?}");
    let ran = node.cli(&["call", "kv", "get", "asked", "--r", "0"]);
    assert_eq!(ran.code, 2, "{ran:?}");
}

/// Return the number of partitions of which the nodes that run keep items for others.
fn hints(nodes: &[&Node]) -> u64 {
    nodes.iter().map(|node| replicas(node)["hints"].as_u64().unwrap()).sum()
}

#[test]
fn a_write_that_too_few_members_can_take_is_kept_by_another_node_until_they_are_back() {
    let mut cluster = Cluster::joined(5);
    deployed(&cluster, "guests/kv", &["--n", "3", "--storage", "durable", "--strict=false"]);
    deployed(&cluster, "guests/kv", &["--name", "sure", "--n", "3"]);
    let strict: Vec<bool> = {
        let rows = cluster[0].json(&["modules"]).json();
        rows.as_array().unwrap().iter().map(|row| row["strict"].as_bool().unwrap()).collect()
    };
    assert_eq!(strict, [false, true]);
    let at = |row: &Value| cluster.nodes().iter().position(|node| node.name == row["node"]).unwrap();
    let members_of = |module: &str, key: &str| -> Vec<usize> {
        let list = cluster[0].json(&["locate", module, key]).json()["preference_list"].clone();
        list.as_array().unwrap().iter().map(at).collect()
    };
    let members = members_of("kv", "k");
    // The other module has another partition for the same key.
    let sure = (0..200).map(|n| format!("k{n}")).find(|key| {
        let members_of_it = members_of("sure", key);
        members[1..].iter().all(|away| members_of_it.contains(away))
    });
    let sure = sure.expect("a key has both nodes that die among its members");
    let others: Vec<usize> = (0..5).filter(|at| !members.contains(at)).collect();
    for away in [members[1], members[2]] {
        cluster[away].kill();
    }
    let caller = members[0];
    for away in [members[1], members[2]] {
        noticed(&cluster[caller], &cluster[away].name);
    }
    let put = cluster[caller].call("kv", "put", &["k", "kept"]);
    assert!(put.is_ok(), "{put:?}");
    let error = cluster[caller].call("sure", "put", &[&sure, "1"]).unwrap_err();
    assert_eq!((&error["code"], &error["state"]), (&"not-enough-replicas".into(), &"not-applied".into()));
    // A fallback keeps items, and answers nothing (R6).
    let error = cluster[caller].call("kv", "get", &["k"]).unwrap_err();
    assert_eq!((&error["code"], &error["state"]), (&"not-enough-replicas".into(), &"not-applied".into()));

    let keeper = *others.iter().find(|at| hints(&[&cluster[**at]]) > 0).expect("another node keeps it");
    let rows = cluster[caller].json(&["transfers"]).json();
    let of_keeper = |row: &&Value| row["kind"] == "hinted" && row["from"] == cluster[keeper].name;
    let hinted = rows.as_array().unwrap().iter().find(of_keeper).cloned().expect("it is shown");
    assert_eq!((&hinted["module"], hinted["waiting_for"].is_string()), (&"kv".into(), true), "{hinted}");
    // It is on the disk of that node.
    cluster[keeper].kill();
    cluster.nodes_mut()[keeper].start();
    assert_eq!(hints(&[&cluster[keeper]]), 1);

    // Those that have missed it get it from there, although the member that has it is gone.
    cluster[caller].kill();
    for back in [members[1], members[2]] {
        cluster.nodes_mut()[back].start();
    }
    let got = until("those that are back have it", || cluster[members[1]].call("kv", "get", &["k"]).ok());
    assert_eq!(got, "kept");
    until("it is delivered", || (hints(&[&cluster[others[0]], &cluster[others[1]]]) == 0).then_some(()));
    cluster.nodes_mut()[caller].start();
    assert_eq!(until("all serve", || cluster[caller].call("kv", "get", &["k"]).ok()), "kept");
    let nodes: Vec<&Node> = cluster.nodes().iter().collect();
    assert_eq!(hints(&nodes), 0);
}

#[test]
fn what_replicas_cannot_do_is_refused_with_the_reason() {
    let cluster = Cluster::joined(3);
    refused(&deploy(&cluster, "guests/memkv", &["--n", "2"]), "its own memory");
    refused(&deploy(&cluster, "guests/kv", &["--n", "4"]), "the ring's width, which is 3");
    refused(&deploy(&cluster, "guests/kv", &["--n", "3", "--w", "4"]), "w is from 1 to n");
    deployed(&cluster, "guests/kv", &["--n", "3"]);
    refused(&deploy(&cluster, "guests/kv", &["--n", "2"]), "cannot change yet");
    // Quorums can change.
    deployed(&cluster, "guests/kv", &["--w", "3"]);
    assert_eq!(cluster[0].json(&["modules"]).json()[0]["w"], 3);
}

/// Wait until no partition moves, and this node has a share or none.
fn moved(seen_from: &Node, name: &str, has_share: bool) {
    until("the ring has settled", || {
        let ring = ring(seen_from);
        let owned = ring.iter().filter(|(owner, _)| owner == name).count();
        let rests = ring.iter().all(|(_, pending)| pending.is_none());
        (rests && (owned > 10) == has_share).then_some(())
    });
}

/// Nodes join, leave and are replaced under load. Modules with one replica and with several move together.
#[test]
fn partitions_move_under_load_and_nothing_is_lost() {
    let mut cluster = Cluster::joined(3);
    deployed(&cluster, "guests/kv", &["--n", "3"]);
    deployed(&cluster, "guests/kv", &["--name", "single"]);
    let mut single = Book::new("single", 100);
    single.put(&cluster[0], 0..300);
    let load = Load::new(settings(), &[&cluster[0], &cluster[2]]);
    load.fill();
    load.go();
    let check = |load: &Load, cluster: &Cluster, what: &str| {
        load.pause();
        load.report().assert_sound();
        assert_eq!(load.report().phase(what).failed, 0, "{}", load.report());
        let seen = single.read(&cluster[0], 0..300);
        assert!(seen.is_whole(), "{what}: {seen:?}");
        load.go();
    };
    load.phase("a fourth node joins");
    let fourth = cluster.add(&[]);
    cluster[fourth].join(&cluster[0]);
    let name = cluster[fourth].name.clone();
    moved(&cluster[0], &name, true);
    check(&load, &cluster, "a fourth node joins");

    load.phase("the second node leaves");
    let name = cluster[1].name.clone();
    assert_eq!(cluster[0].json(&["leave", &name]).code, 0);
    moved(&cluster[0], &name, false);
    check(&load, &cluster, "the second node leaves");
    assert_eq!(cluster[1].wait_end(), Some(0));

    // A dead node is replaced: the others have all that it had.
    let fifth = cluster.add(&[]);
    cluster[fifth].join(&cluster[0]);
    let name = cluster[fifth].name.clone();
    moved(&cluster[0], &name, true);
    load.phase("a node dies");
    cluster[fourth].kill();
    let dead = cluster[fourth].name.clone();
    // A node that was alive a moment ago is not removed.
    until("the dead node is removed", || (cluster[0].json(&["remove", &dead]).code == 0).then_some(()));
    moved(&cluster[0], &dead, false);
    load.phase("the dead node is gone");
    let before = load.report().requests();
    until("the load continues", || (load.report().requests() > before + 1_000).then_some(()));
    assert_eq!(load.report().phase("the dead node is gone").failed, 0, "{}", load.report());
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
}

/// All nodes but one leave. What only the leaver and a member that was down have acknowledged stays.
#[test]
fn a_cluster_shrinks_to_one_node_and_a_member_that_is_down_is_waited_for() {
    let mut cluster = Cluster::joined(3);
    deployed(&cluster, "guests/kv", &["--n", "3", "--storage", "durable"]);
    let mut book = Book::new("kv", 100);
    book.put(&cluster[0], 0..200);
    complete(&cluster);
    cluster[1].kill();
    noticed(&cluster[0], &cluster[1].name);
    book.put(&cluster[0], 100..400);
    let (second, third) = (cluster[1].name.clone(), cluster[2].name.clone());
    let mut leave = command().arg("--data").arg(&cluster[0].data).args(["leave", &third]).spawn().unwrap();
    let waits = format!("receiver {second} is down");
    until("the transfers name the member that is down", || {
        let transfers = cluster[0].json(&["transfers"]).json();
        let names = |row: &Value| row["kind"] == "repair" && row["waiting_for"] == waits;
        transfers.as_array().unwrap().iter().any(names).then_some(())
    });
    assert!(cluster[2].is_running() && leave.try_wait().unwrap().is_none());
    cluster[1].start();
    assert_eq!(cluster[2].wait_end(), Some(0));
    assert!(leave.wait().unwrap().success());
    book.put(&cluster[1], 300..600);
    assert_eq!(cluster[0].json(&["leave", &second]).code, 0);
    assert_eq!(cluster[1].wait_end(), Some(0));
    let seen = book.read(&cluster[0], 0..600);
    assert!(seen.is_whole(), "{seen:?}");
    assert_eq!(losses(&cluster[0]), [""; 0]);
}
