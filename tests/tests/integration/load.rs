//! A cluster grows and shrinks and its module is replaced, under a load that is checked against a model.

use std::time::Duration;

use annulus_tests::growth::grow_and_shrink;
use annulus_tests::guests::component_with;
use annulus_tests::harness::{Cluster, owned_by, pending, until};
use annulus_tests::load::{Load, Settings};

#[test]
fn no_request_fails_during_joins_a_leave_and_a_deploy() {
    let report = grow_and_shrink(Settings::default(), Duration::from_secs(1));
    println!("{report}");
    report.assert_flawless();
    assert!(report.acknowledged > 20_000 && report.coverages > 5, "{report}");
}

#[test]
fn no_request_fails_during_a_deploy_and_a_rollback_in_the_middle_of_handoffs() {
    let cluster = Cluster::apart(3);
    cluster.deploy("guests/kv");
    let changed = cluster.keep("kv-2.wasm", &component_with("guests/kv", &["v2"]));
    let settings = Settings { keys: 4_000, clients: 8, pad: 4_000, ..Settings::default() };
    let load = Load::new(settings, &[&cluster[0]]);
    load.fill();
    load.go();
    let verbs = [["deploy", changed.to_str().unwrap()], ["rollback", "kv"]];
    for (joining, verb) in (1..).zip(verbs) {
        load.phase(&format!("join and {}", verb[0]));
        let joins = cluster[joining].begin_join(&cluster[0]);
        until("partitions move", || (!pending(&cluster[0]).is_empty()).then_some(()));
        let ran = cluster[0].json(&verb);
        assert_eq!(ran.code, 0, "{ran:?}");
        until("the node has its share", || {
            let share = owned_by(&cluster[0], &cluster[joining].name).len();
            (share >= 64 / (joining + 1) && pending(&cluster[0]).is_empty()).then_some(())
        });
        drop(joins);
    }
    load.enter(&[&cluster[0], &cluster[1], &cluster[2]]);
    load.phase("three nodes");
    // Every node runs the release to which the module was rolled back.
    let row = cluster[2].json(&["modules"]).json()[0].take();
    assert_eq!(row["nodes"].as_object().unwrap().len(), 3, "{row}");
    assert!(row["nodes"].as_object().unwrap().values().all(|digest| *digest == row["digest"]), "{row}");
    let report = load.verify();
    println!("{report}");
    report.assert_flawless();
}
