//! Whole nodes under seeds: the rules hold, and a seed is one history.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use annulus_sim::saved::Saved;
use annulus_sim::{Report, Seen, Settings, run};

/// A run without a broken rule.
fn good(seed: u64, settings: &Settings) -> Report {
    let report = run(seed, settings);
    if let Some(broken) = &report.broken {
        let tail = report.lines.iter().rev().take(80).rev().cloned().collect::<Vec<_>>().join("\n");
        panic!("{tail}\nseed {seed}: {broken}");
    }
    report
}

#[test]
fn some_histories_of_whole_nodes_break_no_rule() {
    let mut seen = Seen::default();
    let (mut acknowledged, mut lasted, began) = (0, Duration::ZERO, Instant::now());
    for seed in 0..60 {
        let report = good(seed, &Settings::default());
        seen.add(&report.seen);
        acknowledged += report.counts.acknowledged;
        lasted += report.lasted;
    }
    println!("{lasted:?} of virtual time in {:?}; {acknowledged} acknowledged; {seen:?}", began.elapsed());
    // A simulation in which nothing happens proves nothing.
    assert!(acknowledged > 20_000 && seen.moved > 200 && seen.entries > 2_000, "{acknowledged}, {seen:?}");
    let each = [
        seen.kills,
        seen.power_losses,
        seen.pauses,
        seen.cuts,
        seen.jumps,
        seen.joins,
        seen.leaves,
        seen.replaces,
        seen.removes,
        seen.downs,
        seen.commits,
        seen.deploys,
        seen.rollbacks,
        seen.undeploys,
        seen.limits,
        seen.holds,
        seen.full_disks,
        seen.broken_syncs,
        seen.deaths,
        seen.wipes,
        seen.stale_disks,
        seen.recoveries,
        seen.upgrades,
        seen.coverages,
        seen.falls,
        seen.losses,
        seen.compared,
    ];
    assert!(each.iter().all(|times| *times > 0), "{seen:?}");
}

/// Has the other process say what its run came to.
const TOLD: &str = "ANNULUS_SIM_TRACE_OF_SEED_3";

#[test]
fn a_seed_is_one_history_in_every_process() {
    let settings = Settings { unrest: Duration::from_secs(8), ..Settings::default() };
    let report = good(3, &settings);
    let trace = format!("trace {} after {} polls", report.trace, report.polls);
    if std::env::var_os(TOLD).is_some() {
        return println!("{trace}");
    }
    // Hash maps of another process have other keys.
    let name = "a_seed_is_one_history_in_every_process";
    let mut other = std::process::Command::new(std::env::current_exe().unwrap());
    let other = other.args(["--exact", name, "--nocapture"]).env(TOLD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&other.stdout);
    assert!(other.status.success() && said.contains(&trace), "{trace}; the other process: {said}");
}

/// Schedules that broke a rule once, each in a file that is named for what it found. What a seed decides beside its
/// schedule may be something else by now.
#[test]
fn what_was_found_stays_mended() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/found");
    let mut files: Vec<_> = std::fs::read_dir(found).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5);
    for file in files {
        let saved = Saved::read(&file).unwrap();
        let (report, _) = saved.run();
        assert_eq!(report.broken, None, "{}", file.display());
    }
}

#[test]
fn a_seed_is_one_history_and_another_is_another() {
    let settings = Settings { unrest: Duration::from_secs(8), ..Settings::default() };
    let (one, again, other) = (good(3, &settings), good(3, &settings), good(4, &settings));
    assert_eq!((one.trace, one.polls, &one.lines), (again.trace, again.polls, &again.lines));
    assert_ne!(one.trace, other.trace);
}
