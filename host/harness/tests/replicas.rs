//! Modules with several replicas on whole nodes, under seeded faults: what was acknowledged is found again.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::mutants::{self, Mutant};
use annulus_core::request::AppliedState;
use annulus_core::state::StorageKind;
use annulus_harness::guest::{Keeps, Script};
use annulus_harness::trial::{Cluster, Faults, Ran, Trial};
use ciborium::Value;
use parking_lot::Mutex;
use rand::RngExt;

/// Number of keys, each with a set of members.
const KEYS: u64 = 6;
/// Number of clients that add members at the same time.
const CLIENTS: u64 = 3;
/// Number of members that each client adds.
const ADDS: u64 = 60;

/// What the clients know of the members that they have added.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeSet<(u64, u64)>,
    /// Those of which a client does not know whether they were added.
    unknown: BTreeSet<(u64, u64)>,
    refused: u64,
}

fn script() -> Script {
    Script { keeps: Keeps::Host, unites: true, ..Script::default() }
}

fn key(number: u64) -> (&'static str, Value) {
    ("key", format!("k{number}").into())
}

/// Add the members of one client.
async fn add(cluster: &Cluster, client: u64, ledger: &Mutex<Ledger>, reads: bool) {
    for number in 0..ADDS {
        let (of, member) = (number % KEYS, client * ADDS + number);
        let args = [key(of), ("value", member.into())];
        let added = cluster.call("append", &args).await;
        {
            let mut ledger = ledger.lock();
            match added {
                Ok(_) => drop(ledger.acknowledged.insert((of, member))),
                Err(error) if error.state == AppliedState::NotApplied => ledger.refused += 1,
                Err(_) => drop(ledger.unknown.insert((of, member))),
            }
        }
        if reads && number % 4 == client {
            read_back(cluster, of, ledger).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Check that a read sees every member whose addition was acknowledged before the read began.
async fn read_back(cluster: &Cluster, of: u64, ledger: &Mutex<Ledger>) {
    let before = ledger.lock().acknowledged.clone();
    let Ok(found) = cluster.call("get", &[key(of)]).await else { return };
    let found = as_members(found);
    let missed: Vec<_> =
        before.iter().filter(|(key, member)| *key == of && !found.contains(member)).collect();
    cluster.check(missed.is_empty(), format_args!("a read of k{of} misses {missed:?}"));
}

fn as_members(got: Value) -> BTreeSet<u64> {
    let list = match got {
        Value::Null => Vec::new(),
        list => list.into_array().unwrap(),
    };
    list.into_iter().map(|member| u64::try_from(member.into_integer().unwrap()).unwrap()).collect()
}

/// Return the members of a key.
async fn members(cluster: &Cluster, of: u64) -> BTreeSet<u64> {
    let got = loop {
        if let Ok(got) = cluster.call("get", &[key(of)]).await {
            break got;
        }
    };
    as_members(got)
}

async fn add_and_check(cluster: &Cluster, ledger: &Mutex<Ledger>) {
    let clients = (0..CLIENTS).map(|client| add(cluster, client, ledger, true));
    futures_util::future::join_all(clients).await;
    cluster.calm().await;
    check_all(cluster, ledger).await;
}

/// Check that all that was acknowledged is found, and nothing that was refused.
async fn check_all(cluster: &Cluster, ledger: &Mutex<Ledger>) {
    for of in 0..KEYS {
        let found = members(cluster, of).await;
        let ledger = ledger.lock();
        let of_key = |all: &BTreeSet<(u64, u64)>| {
            all.iter().filter(|(key, _)| *key == of).map(|(_, member)| *member).collect::<BTreeSet<u64>>()
        };
        let (acknowledged, unknown) = (of_key(&ledger.acknowledged), of_key(&ledger.unknown));
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        cluster.check(lost.is_empty(), format_args!("acknowledged members {lost:?} of k{of} are lost"));
        let phantom: Vec<_> =
            found.iter().filter(|one| !acknowledged.contains(one) && !unknown.contains(one)).collect();
        cluster.check(phantom.is_empty(), format_args!("refused members {phantom:?} of k{of} are found"));
    }
}

fn trial(script: &Script, storage: StorageKind, faults: Faults, seed: u64) -> Trial {
    Trial::new(script.component()).replicas(3).storage(storage).seed(seed).faults(faults)
}

fn run(trial: Trial) -> (Arc<Mutex<Ledger>>, Result<Ran, String>) {
    let ledger = Arc::<Mutex<Ledger>>::default();
    let ran = trial.run(async |cluster| add_and_check(cluster, &ledger).await);
    (ledger.clone(), ran.map_err(|failed| failed.to_string()))
}

fn kept_under(storage: StorageKind, faults: Faults, seeds: std::ops::Range<u64>) {
    let (mut acknowledged, mut unknown, mut refused) = (0, 0, 0);
    for seed in seeds {
        let (ledger, ran) = run(trial(&script(), storage, faults, seed));
        ran.unwrap_or_else(|failed| panic!("{failed}"));
        let ledger = ledger.lock();
        acknowledged += ledger.acknowledged.len();
        unknown += ledger.unknown.len();
        refused += ledger.refused;
    }
    println!("{acknowledged} acknowledged, {unknown} unknown, {refused} refused");
    assert!(acknowledged > 100);
}

/// Nodes come and go while the clients add members.
fn kept_in_motion(storage: StorageKind, faults: Faults, seeds: std::ops::Range<u64>) {
    let mut acknowledged = 0;
    for seed in seeds {
        let ledger = Arc::<Mutex<Ledger>>::default();
        let ran = trial(&script(), storage, faults, seed).run(async |cluster| {
            let moves = async {
                let mut random = cluster.random("moves");
                for _ in 0..random.random_range(1..=3) {
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
                    let at = cluster.join().await;
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
                    // The first node is the one that others join.
                    let leaver = if random.random_bool(0.5) { at } else { 1 + random.random_range(0..2) };
                    if random.random_bool(0.7) && cluster.nodes().life(leaver).is_some() {
                        cluster.try_leave(leaver).await;
                    }
                }
            };
            futures_util::future::join(moves, add_and_check(cluster, &ledger)).await;
            cluster.calm().await;
            check_all(cluster, &ledger).await;
        });
        ran.unwrap_or_else(|failed| panic!("{failed}"));
        acknowledged += ledger.lock().acknowledged.len();
    }
    println!("{acknowledged} acknowledged");
    assert!(acknowledged > 100);
}

#[test]
fn what_was_acknowledged_outlives_moves_of_its_partition() {
    kept_in_motion(StorageKind::Memory, Faults::None, seeds(0..12));
}

#[test]
fn what_was_acknowledged_outlives_moves_between_cuts_and_deaths() {
    kept_in_motion(StorageKind::Memory, Faults::Passing, seeds(0..8));
    kept_in_motion(StorageKind::Durable, Faults::Deaths, seeds(0..8));
}

/// All nodes but one leave, one after another, while the clients add members.
fn run_shrinking(storage: StorageKind, faults: Faults, seed: u64) -> (usize, Result<Ran, String>) {
    let ledger = Arc::<Mutex<Ledger>>::default();
    let ran = trial(&script(), storage, faults, seed).run(async |cluster| {
        let leaves = async {
            let mut random = cluster.random("moves");
            for at in [2, 1] {
                tokio::time::sleep(Duration::from_millis(random.random_range(500..4_000))).await;
                // A leave may be refused, or its answer lost, while its node is cut off or dies.
                while cluster.nodes().life(at).is_some() && !cluster.try_leave(at).await {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        futures_util::future::join(leaves, add_and_check(cluster, &ledger)).await;
        cluster.calm().await;
        check_all(cluster, &ledger).await;
    });
    (ledger.lock().acknowledged.len(), ran.map_err(|failed| failed.to_string()))
}

#[test]
fn what_was_acknowledged_outlives_the_leave_of_all_nodes_but_one() {
    for (storage, faults) in [(StorageKind::Memory, Faults::Passing), (StorageKind::Durable, Faults::Deaths)]
    {
        let mut acknowledged = 0;
        for seed in seeds(0..8) {
            let (of, ran) = run_shrinking(storage, faults, seed);
            ran.unwrap_or_else(|failed| panic!("{failed}"));
            acknowledged += of;
        }
        println!("{acknowledged} acknowledged");
        assert!(acknowledged > 100);
    }
}

/// Two nodes are cut off, so that other nodes keep what members among them lack; then another member loses its items.
fn run_hinted(seed: u64) -> (usize, Result<Ran, String>) {
    let ledger = Arc::<Mutex<Ledger>>::default();
    let trial = trial(&script(), StorageKind::Memory, Faults::None, seed).nodes(5).sloppy(true);
    let ran = trial.run(async |cluster| {
        let mut random = cluster.random("hints");
        cluster.cut_off(&[1, 2]).await;
        for number in 0..4 * KEYS {
            let (of, at) = (number % KEYS, [0, 3, 4][random.random_range(0..3)]);
            match cluster.call_at(at, "append", &[key(of), ("value", number.into())]).await {
                Ok(_) => drop(ledger.lock().acknowledged.insert((of, number))),
                Err(error) if error.state == AppliedState::NotApplied => ledger.lock().refused += 1,
                Err(_) => drop(ledger.lock().unknown.insert((of, number))),
            }
        }
        // Virtual time, in which a hint that may end would end.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let lost = 3 + random.random_range(0..2);
        cluster.nodes().kill(lost, false);
        cluster.heal();
        cluster.nodes().start(lost);
        cluster.calm().await;
        check_all(cluster, &ledger).await;
    });
    (ledger.lock().acknowledged.len(), ran.map_err(|failed| failed.to_string()))
}

#[test]
fn what_other_nodes_have_kept_outlives_the_only_member_that_had_it() {
    let mut acknowledged = 0;
    for seed in seeds(0..10) {
        let (of, ran) = run_hinted(seed);
        ran.unwrap_or_else(|failed| panic!("{failed}"));
        acknowledged += of;
    }
    // A partition with both of the nodes that are cut off has one member left, and takes writes nevertheless.
    assert_eq!(acknowledged as u64, 10 * 4 * KEYS);
    let noticed =
        (0..60).find_map(|seed| mutants::during(Some(Mutant::DropHint), || run_hinted(seed)).1.err());
    let why = noticed.expect("a hint that ends early is noticed");
    assert!(why.contains("are lost"), "{why}");
}

#[test]
fn what_fallbacks_have_acknowledged_outlives_cuts_and_deaths() {
    for (storage, faults) in [(StorageKind::Memory, Faults::Passing), (StorageKind::Durable, Faults::Deaths)]
    {
        let (mut acknowledged, mut refused) = (0, 0);
        for seed in seeds(0..8) {
            let ledger = Arc::<Mutex<Ledger>>::default();
            let trial = trial(&script(), storage, faults, seed).nodes(5).writes(3).sloppy(true);
            let ran = trial.run(async |cluster| {
                let clients = (0..CLIENTS).map(|client| add(cluster, client, &ledger, false));
                futures_util::future::join_all(clients).await;
                cluster.calm().await;
                check_all(cluster, &ledger).await;
            });
            ran.unwrap_or_else(|failed| panic!("{failed}"));
            acknowledged += ledger.lock().acknowledged.len();
            refused += ledger.lock().refused;
        }
        println!("{acknowledged} acknowledged, {refused} refused");
        assert!(acknowledged > 100);
    }
}

/// The seeds of the tests. More of them by hand: `REPLICA_SEEDS=0..500`.
fn seeds(few: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(range) = std::env::var("REPLICA_SEEDS") else { return few };
    let (from, to) = range.split_once("..").unwrap();
    from.parse().unwrap()..to.parse().unwrap()
}

#[test]
fn a_cluster_without_faults_acknowledges_everything() {
    for storage in [StorageKind::Memory, StorageKind::Durable] {
        let (ledger, ran) = run(trial(&script(), storage, Faults::None, 1));
        ran.unwrap_or_else(|failed| panic!("{failed}"));
        assert_eq!(ledger.lock().acknowledged.len() as u64, CLIENTS * ADDS);
    }
}

#[test]
fn what_was_acknowledged_outlives_cuts_and_pauses() {
    kept_under(StorageKind::Memory, Faults::Passing, seeds(0..12));
}

/// With `r` = 1, a replica that has lost its items must not be the one that is asked.
#[test]
fn a_read_of_one_replica_sees_what_all_have_acknowledged() {
    for seed in seeds(0..6) {
        let trial = trial(&script(), StorageKind::Memory, Faults::Deaths, seed).reads(1).writes(3);
        run(trial).1.unwrap_or_else(|failed| panic!("{failed}"));
    }
}

#[test]
fn what_was_acknowledged_in_memory_outlives_the_death_of_a_node() {
    kept_under(StorageKind::Memory, Faults::Deaths, seeds(0..12));
}

#[test]
fn what_was_acknowledged_on_disk_outlives_every_death() {
    kept_under(StorageKind::Durable, Faults::Deaths, seeds(0..12));
}

/// Each rule, broken on purpose, is missed by one of these tests.
#[test]
fn every_broken_rule_is_noticed() {
    let (deaths, passing) = (Faults::Deaths, Faults::Passing);
    for (mutant, faults, quorums, first) in [
        (Mutant::KeepToItself, deaths, (2, 2), 0),
        // A read that one replica answers is wrong as soon as that one is. Few seeds notice it.
        (Mutant::BuildingAnswers, deaths, (1, 3), 240),
        (Mutant::TrustEmptyMemory, deaths, (1, 3), 180),
        (Mutant::ReadOneReplica, passing, (2, 2), 0),
    ] {
        let noticed = (first..first + 400).find_map(|seed| {
            let trial = trial(&script(), StorageKind::Memory, faults, seed);
            let trial = trial.reads(quorums.0).writes(quorums.1);
            let why = mutants::during(Some(mutant), || run(trial)).1.err()?;
            Some((seed, why.lines().last().unwrap_or_default().to_owned()))
        });
        let (seed, why) = noticed.unwrap_or_else(|| panic!("{mutant} is not noticed"));
        assert!(why.contains("are lost") || why.contains("misses"), "{mutant}: {why}");
        println!("{mutant} is noticed by seed {seed}: {why}");
    }
}

/// The check of the other tests can fail.
#[test]
fn a_guest_that_keeps_the_newer_version_loses_what_was_acknowledged() {
    let script = Script { unites: false, ..script() };
    let blind = |seed| trial(&script, StorageKind::Memory, Faults::Passing, seed).reads(1);
    let lost = (0..60).find_map(|seed| run(blind(seed)).1.err());
    let why = lost.expect("a seed loses a member");
    assert!(why.contains("are lost") || why.contains("misses"), "{why}");
}
