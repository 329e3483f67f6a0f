//! Nodes crash, freeze and come back at every step of a handoff, under a load that is checked against a model.
//!
//! Where the guest keeps its items in memory, a killed node loses the items that it held, and only those. Durable items
//! are never lost.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use annulus::admin::AdminRequest;
use annulus::admin::rows::{RingRow, TransferRow};
use annulus_tests::client::Operator;
use annulus_tests::harness::{Cluster, LIMIT, Node, owned_by, pending, ring, until};
use annulus_tests::load::{Load, Report, Settings};

/// Longest time until a request to a dead node fails with an error.
const NOTICED: Duration = Duration::from_secs(1);

/// The module under load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// `guests/memkv`: its items end with the node's process.
    InMemory,
    /// `guests/kv`: its items are durable.
    OnDisk,
}

impl Kept {
    fn guest(self) -> &'static str {
        match self {
            Self::InMemory => "guests/memkv",
            Self::OnDisk => "guests/kv",
        }
    }

    fn settings(self) -> Settings {
        let module = match self {
            Self::InMemory => "memkv",
            Self::OnDisk => "kv",
        };
        Settings { module, ..settings() }
    }

    /// Expect that the items of a killed node's partitions may be lost, if they were in its memory.
    fn doubt(self, load: &Load, partitions: HashSet<u16>) {
        if self == Self::InMemory {
            load.doubt(partitions);
        }
    }
}

fn settings() -> Settings {
    // The pause leaves some CPU time for recovering nodes; the large values make a handoff take long enough
    // for a fault to hit it.
    Settings {
        module: "memkv",
        clients: 8,
        keys: 4_000,
        pad: 4_000,
        rest: Duration::from_millis(2),
        ..Settings::default()
    }
}

/// Return the partitions that a killed node owns, once they no longer change: a flip to it may be in progress.
fn held_by(seen_from: &Node, dead: &str) -> HashSet<u16> {
    let mut before = owned_by(seen_from, dead);
    let mut since = Instant::now();
    until("the dead node's partitions no longer change", || {
        let now = owned_by(seen_from, dead);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_secs(1)).then(|| before.clone())
    })
}

/// Let the load run until this many more requests have been answered.
fn go_on(load: &Load, requests: u64) {
    let before = load.report().requests();
    until("the load continues", || (load.report().requests() >= before + requests).then_some(()));
}

fn assert_failed_only_there(report: &Report, dead: &HashSet<u16>) {
    for failed in &report.failures {
        assert!(
            dead.contains(&failed.partition) && failed.code == "not-enough-replicas",
            "{failed:?}\n{report}"
        );
    }
    assert!(report.missing.iter().all(|partition| dead.contains(partition)), "{report}");
}

#[test]
fn a_killed_node_fails_only_its_own_partitions_and_serves_again_after_a_restart() {
    let mut cluster = Cluster::joined(3);
    cluster.deploy(Kept::InMemory.guest());
    let load = Load::new(Kept::InMemory.settings(), &[&cluster[0], &cluster[2]]);
    load.fill();
    load.go();
    // Kill first a follower, then the leader.
    let leader = cluster[2].json(&["status"]).json()["claimant"].as_str().unwrap().to_owned();
    let leads = (0..3).find(|node| cluster[*node].name == leader).unwrap();
    for dead in [(leads + 1) % 3, leads] {
        let [left, right] = [(dead + 1) % 3, (dead + 2) % 3];
        load.enter(&[&cluster[left], &cluster[right]]);
        let failed_before = load.report().failures.len();
        let name = cluster[dead].name.clone();
        load.phase(&format!("{name} is dead"));
        cluster[dead].kill();
        let held = owned_by(&cluster[left], &name);
        assert!(held.len() >= 21, "{held:?}");
        // Wait until the node's death is known, and for some time after that.
        until("requests fail", || (load.report().failures.len() > failed_before + 20).then_some(()));
        go_on(&load, 2_000);
        load.doubt(held.clone());
        load.phase(&format!("{name} comes back"));
        cluster[dead].start();
        until("the partitions of the dead node serve again", || {
            let failed = load.report().failed_requests();
            go_on(&load, 500);
            (load.report().failed_requests() == failed).then_some(())
        });
        load.phase("all serve");
        go_on(&load, 1_000);

        let mut report = load.report();
        assert_eq!(report.phases.last().unwrap().failed, 0, "{report}");
        report.failures.drain(..failed_before);
        println!("{report}");
        // While the node starts, it answers that it is not ready, or its peers still count it as dead.
        let (dead_time, coming): (Vec<_>, Vec<_>) = {
            let back = report.phase(&format!("{name} comes back")).began;
            report.failures.iter().cloned().partition(|failed| failed.sent < back)
        };
        assert!(coming.iter().all(|failed| held.contains(&failed.partition)), "{report}");
        let slowest = dead_time.iter().map(|failed| failed.took).max().unwrap();
        let late = dead_time.iter().filter(|failed| failed.took >= NOTICED).count();
        println!("{name}: {} failed, {late} late, the slowest after {slowest:?}", dead_time.len());
        let most_late = dead_time.len() / 100;
        report.failures = dead_time;
        report.missing.clear();
        assert_failed_only_there(&report, &held);
        // A busy machine may delay a few requests, but not by much.
        assert!(late <= most_late && slowest < 2 * NOTICED, "{late} late, {slowest:?}\n{report}");
    }
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
}

/// Progress of a handoff at the moment of a fault.
const MOMENTS: [&str; 4] = ["agreed on", "in progress", "sealed", "half over"];

/// Wait for a moment of the handoff to a joining node. Polls over one connection without a pause, because some
/// moments are short.
fn await_moment(moment: &str, seen_from: &Node, joining: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let came = async {
        let node = Operator::connect(&seen_from.data).await.unwrap();
        loop {
            let here = if ["agreed on", "half over"].contains(&moment) {
                let ring: RingRow = node.ask(&AdminRequest::Ring).await.unwrap();
                let is = |nodes: &[String]| nodes.first().is_some_and(|node| node == joining);
                let coming = ring.partitions.iter().filter(|row| is(&row.pending)).count();
                let there = ring.partitions.iter().filter(|row| is(&row.replicas)).count();
                if moment == "agreed on" { coming > 0 } else { there >= 4 }
            } else {
                let rows: Vec<TransferRow> = node.ask(&AdminRequest::Transfers).await.unwrap();
                rows.iter().any(|row| row.state == "sealed" || moment == "in progress" && row.items_done > 0)
            };
            if here {
                return;
            }
        }
    };
    let came = runtime.block_on(async { tokio::time::timeout(LIMIT, came).await });
    assert!(came.is_ok(), "never {moment}");
}

/// Wait until no transfer is pending and this number of nodes have equal shares.
fn settled(seen_from: &Node, nodes: usize) {
    until("the ring has settled", || {
        let ring = ring(seen_from);
        let owners: HashSet<&String> = ring.iter().map(|(owner, _)| owner).collect();
        let share = |name: &String| ring.iter().filter(|(owner, _)| owner == name).count();
        let even = owners.len() == nodes && owners.iter().all(|name| share(name) >= ring.len() / nodes);
        (even && ring.iter().all(|(_, pending)| pending.is_none())).then_some(())
    });
}

fn kill_receivers(kept: Kept) {
    let mut cluster = Cluster::apart(MOMENTS.len() + 1);
    cluster.deploy(kept.guest());
    let load = Load::new(kept.settings(), &[&cluster[0]]);
    load.fill();
    load.go();
    for (joining, moment) in (1..).zip(MOMENTS) {
        let name = cluster[joining].name.clone();
        load.phase(&format!("killed {moment}"));
        let verb = cluster[joining].begin_join(&cluster[0]);
        await_moment(moment, &cluster[0], &name);
        cluster[joining].kill();
        drop(verb);
        let held = held_by(&cluster[0], &name);
        let left = pending(&cluster[0]).len();
        println!("killed {moment}: held {}, {left} still to come", held.len());
        kept.doubt(&load, held);
        cluster[joining].start();
        load.phase(&format!("back after {moment}"));
        settled(&cluster[0], joining + 1);
        load.pause();
        load.report().assert_sound();
        load.go();
    }
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
}

#[test]
fn a_receiver_killed_at_any_moment_loses_only_its_own_items() {
    kill_receivers(Kept::InMemory);
}

#[test]
fn a_receiver_killed_at_any_moment_loses_no_durable_item() {
    kill_receivers(Kept::OnDisk);
}

fn kill_senders(kept: Kept) {
    let mut cluster = Cluster::apart(MOMENTS.len() + 2);
    cluster[1].join(&cluster[0]);
    cluster.deploy(kept.guest());
    let load = Load::new(kept.settings(), &[&cluster[0]]);
    load.fill();
    load.go();
    for (joining, moment) in (2..).zip(MOMENTS) {
        let name = cluster[joining].name.clone();
        load.phase(&format!("sender killed {moment}"));
        let verb = cluster[joining].begin_join(&cluster[0]);
        await_moment(moment, &cluster[0], &name);
        cluster[1].kill();
        let sender = cluster[1].name.clone();
        kept.doubt(&load, owned_by(&cluster[0], &sender));
        // Transfers from the other nodes complete.
        until("only the dead sender's partitions are left to move", || {
            let ring = ring(&cluster[0]);
            ring.iter().all(|(owner, pending)| pending.is_none() || *owner == sender).then_some(())
        });
        println!("sender killed {moment}: {} left to move", pending(&cluster[0]).len());
        cluster[1].start();
        load.phase(&format!("sender back after {moment}"));
        settled(&cluster[0], joining + 1);
        drop(verb);
        load.pause();
        load.report().assert_sound();
        load.go();
    }
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
}

#[test]
fn a_sender_killed_at_any_moment_delays_no_other_and_revives_no_deleted_key() {
    kill_senders(Kept::InMemory);
}

#[test]
fn a_sender_killed_at_any_moment_loses_no_durable_item() {
    kill_senders(Kept::OnDisk);
}

/// The leaver gives every partition away; the others take.
#[test]
fn a_leaver_killed_while_it_gives_loses_no_durable_item() {
    let mut cluster = Cluster::joined(3);
    cluster.deploy(Kept::OnDisk.guest());
    let load = Load::new(Kept::OnDisk.settings(), &[&cluster[0]]);
    load.fill();
    load.go();
    let (name, taker) = (cluster[2].name.clone(), cluster[1].name.clone());
    let asked = cluster[0].json(&["leave", &name, "--stage"]);
    assert_eq!(asked.code, 0, "{asked:?}");
    let verb = cluster[0].begin(&["commit"]);
    for (moment, victim) in [("in progress", 2), ("sealed", 1), ("sealed", 2)] {
        load.phase(&format!("{victim} killed {moment}"));
        await_moment(moment, &cluster[0], &taker);
        cluster[victim].kill();
        cluster[victim].start();
    }
    until("the leaver owns nothing", || owned_by(&cluster[0], &name).is_empty().then_some(()));
    drop(verb);
    load.enter(&[&cluster[0], &cluster[1]]);
    load.phase("it has left");
    go_on(&load, 500);
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
}

#[test]
fn a_receiver_that_freezes_only_delays_the_handoff() {
    let cluster = Cluster::apart(2);
    cluster.deploy(Kept::InMemory.guest());
    let load = Load::new(Kept::InMemory.settings(), &[&cluster[0]]);
    load.fill();
    load.go();
    let verb = cluster[1].begin_join(&cluster[0]);
    await_moment("half over", &cluster[0], &cluster[1].name);
    load.phase("frozen");
    cluster[1].pause();
    // The pause is long enough for the node to be declared dead, so that requests to its partitions fail.
    until("requests fail", || (load.report().failed_requests() > 10).then_some(()));
    go_on(&load, 500);
    cluster[1].resume();
    load.phase("thawed");
    settled(&cluster[0], 2);
    drop(verb);
    load.phase("settled");
    go_on(&load, 500);
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
    assert_eq!(report.phase("settled").failed + report.phase("read back").failed, 0, "{report}");
    assert!(report.failures.iter().all(|failed| failed.code == "not-enough-replicas"), "{report}");
}

#[test]
fn a_cluster_killed_and_restarted_as_a_whole_is_unchanged() {
    let mut cluster = Cluster::joined(3);
    cluster.deploy("guests/kv");
    let before = ring(&cluster[0]);
    let modules = cluster[0].json(&["modules"]).json();
    cluster.nodes_mut().iter_mut().for_each(Node::kill);
    for node in cluster.nodes_mut() {
        node.start();
    }
    until("every node serves every partition", || {
        let complete = |node: &Node| node.everywhere("kv", "keys").is_ok();
        cluster.nodes().iter().all(complete).then_some(())
    });
    for node in cluster.nodes() {
        assert_eq!(ring(node), before);
        assert_eq!(node.json(&["modules"]).json()[0]["digest"], modules[0]["digest"]);
    }
    cluster[1].call("kv", "put", &["after", "all"]).unwrap();
    assert_eq!(cluster[2].call("kv", "get", &["after"]).unwrap(), "all");
}
