//! Short runs of `annulus-tests -- chaos crash`, and the proof that such a run notices a loss.

use annulus_tests::chaos::crash::{Outcome, Settings, crash};
use annulus_tests::load;

/// Run with these settings, or return `None` and say so if this machine mounts no images.
fn run(settings: &Settings) -> Option<Outcome> {
    match crash(settings) {
        Ok(outcome) => {
            println!("{outcome}");
            Some(outcome)
        }
        Err(why) => {
            eprintln!("SKIPPED: {why}");
            None
        }
    }
}

fn holds(settings: &Settings) {
    let Some(outcome) = run(settings) else { return };
    assert!(outcome.holds(), "{outcome}");
    assert_eq!(outcome.cycles, settings.cycles);
    assert!(outcome.report.acknowledged > 20 * u64::from(settings.cycles), "{outcome}");
    let last = outcome.to_string().lines().last().unwrap().to_owned();
    assert!(
        last.starts_with("checked ") && last.ends_with(": lost 0, resurrected 0, unanswered 0"),
        "{last}"
    );
}

#[test]
fn twenty_crashes_lose_no_acknowledged_write() {
    holds(&Settings::new(20, 1));
}

#[test]
fn crashes_of_one_of_three_nodes_lose_no_acknowledged_write() {
    holds(&Settings { nodes: 3, ..Settings::new(5, 2) });
}

#[test]
fn losses_of_power_lose_no_acknowledged_write() {
    holds(&Settings { power: true, ..Settings::new(5, 3) });
}

/// The same run with a module that keeps its items in memory: every restart loses all of them.
#[test]
fn a_run_that_loses_items_is_reported_as_such() {
    let settings = Settings::new(2, 4);
    let load = load::Settings { module: "memkv", ..settings.load.clone() };
    let outcome = run(&Settings { guest: "guests/memkv", load, keep: false, ..settings }).unwrap();
    assert!(!outcome.holds() && outcome.report.lost > 100, "{outcome}");
    assert!(outcome.oracles.iter().all(|(_, oracle)| oracle.is_err()), "{outcome}");
    assert!(outcome.to_string().lines().last().unwrap().contains(&format!("lost {}", outcome.report.lost)));
}
