//! Short runs of `annulus-tests -- chaos`.

use std::time::Duration;

use annulus_tests::chaos::durability::{self, durability};
use annulus_tests::chaos::{Act, Fault, Schedule, Settings, membership};

#[test]
fn members_change_while_nodes_crash_freeze_and_are_cut_off() {
    let outcome = membership(&Settings::new(Duration::from_secs(36), 1));
    println!("{outcome}");
    assert!(outcome.holds(), "{outcome}");
    assert_eq!(outcome.events.len(), 9);
    assert!(outcome.results.report.acknowledged > 5_000, "{outcome}");
    for (module, acknowledged) in [(0, 200), (1, 16)] {
        assert!(outcome.results.beside[module].acknowledged > acknowledged, "{outcome}");
    }
}

#[test]
fn replicas_lose_nothing_while_one_node_after_another_dies_loses_its_items_freezes_or_is_cut_off() {
    let outcome = durability(&durability::Settings::new(Duration::from_secs(20), 1));
    println!("{outcome}");
    assert!(outcome.holds(), "{outcome}");
    assert_eq!(outcome.events.len(), 6);
    assert!(outcome.results.0.iter().all(|module| module.acknowledged > 500), "{outcome}");
}

/// The check of the other test can fail: two nodes that do not see each other both write, and one of the two versions is
/// dropped.
#[test]
fn a_guest_that_keeps_the_newer_version_is_reported_to_lose_writes() {
    let apart = Act::Fault(Fault::Part, Duration::from_secs(4));
    let mut settings = durability::Settings::new(Duration::from_secs(6), 1);
    settings.newest_wins = true;
    settings.schedule = Schedule(vec![(Duration::from_millis(500), apart)]);
    // Both nodes keep every key, and there are few keys, so that both sides write the same ones at the same time.
    (settings.nodes, settings.crowd.slots) = (3, 4);
    let outcome = durability(&settings);
    println!("{outcome}");
    assert!(outcome.results.0.iter().all(|module| module.lost > 0), "{outcome}");
    assert!(!outcome.holds(), "{outcome}");
}
