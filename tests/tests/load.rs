//! A cluster grows, shrinks and is changed under a load that a model checks.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use annulus_tests::growth::grow_and_shrink;
use annulus_tests::load::Settings;

#[test]
fn no_request_fails_while_nodes_join_and_leave_and_a_module_is_swapped() {
    let report = grow_and_shrink(Settings::default(), Duration::from_secs(1));
    println!("{report}");
    report.assert_flawless();
    assert!(report.acknowledged > 20_000 && report.coverages > 5, "{report}");
}
