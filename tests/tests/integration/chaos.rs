//! The membership run of `annulus-tests -- chaos membership`, in short.

use std::time::Duration;

use annulus_tests::chaos::{Settings, membership};

#[test]
fn members_come_and_go_while_nodes_die_freeze_and_are_cut_off() {
    let outcome = membership(&Settings::new(Duration::from_secs(36), 1));
    println!("{outcome}");
    assert!(outcome.holds(), "{outcome}");
    assert_eq!(outcome.events.len(), 9);
    assert!(outcome.report.acknowledged > 5_000, "{outcome}");
    for (module, acknowledged) in [(0, 200), (1, 16)] {
        assert!(outcome.beside[module].acknowledged > acknowledged, "{outcome}");
    }
}
