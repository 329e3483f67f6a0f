//! A short run of `annulus-tests -- chaos membership`.

use std::time::Duration;

use annulus_tests::chaos::{Settings, membership};

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
