//! Whole nodes under seeds: the rules hold, and a seed is one history.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

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
    for seed in 0..6 {
        let report = good(seed, &Settings::default());
        seen.add(&report.seen);
        acknowledged += report.counts.acknowledged;
        lasted += report.lasted;
    }
    println!("{lasted:?} of virtual time in {:?}; {acknowledged} acknowledged; {seen:?}", began.elapsed());
    assert!(acknowledged > 500 && seen.kills + seen.power_losses > 3 && seen.pauses > 1, "{seen:?}");
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

/// Seeds that broke something once. 105: a proposal of a node whose Raft had ended looked for a leader without a
/// pause, and never ended.
#[test]
fn what_a_seed_has_found_stays_mended() {
    good(105, &Settings::default());
}

#[test]
fn a_seed_is_one_history_and_another_is_another() {
    let settings = Settings { unrest: Duration::from_secs(8), ..Settings::default() };
    let (one, again, other) = (good(3, &settings), good(3, &settings), good(4, &settings));
    assert_eq!((one.trace, one.polls, &one.lines), (again.trace, again.polls, &again.lines));
    assert_ne!(one.trace, other.trace);
}
