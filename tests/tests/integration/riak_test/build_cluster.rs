//! riak_test `verify_build_cluster`: a cluster grows from one node to four under load, two nodes stop and
//! start, and all but one leave. Every key is readable throughout, except those in the memory of the stopped
//! nodes.

use annulus_tests::harness::{Cluster, owned_by};
use annulus_tests::load::Settings;

use super::common::{done, loaded, names, present, settings, settled};

#[test]
fn a_cluster_grows_to_four_two_restart_and_all_but_one_leave() {
    let mut cluster = Cluster::apart(4);
    cluster.deploy("guests/memkv");
    let load = loaded(Settings { module: "memkv", ..settings() }, &cluster, &[0]);
    for joining in 1..4 {
        load.phase(&format!("{} nodes", joining + 1));
        cluster[joining].join(&cluster[0]);
        settled(&cluster, &(0..=joining).collect::<Vec<_>>());
    }
    load.report().assert_flawless();

    load.phase("two are away");
    for stopped in [1, 2] {
        let held = owned_by(&cluster[0], &cluster[stopped].name);
        assert_eq!(cluster[stopped].stop(), Some(0));
        load.doubt(held);
    }
    for back in [1, 2] {
        cluster[back].start();
    }
    settled(&cluster, &[0, 1, 2, 3]);
    load.pause();
    load.report().assert_sound();
    load.go();

    load.phase("all but one leave");
    let failed = load.report().failed_requests();
    for leaving in [3, 2, 1] {
        done(&cluster[0].json(&["leave", &cluster[leaving].name]));
        assert_eq!(cluster[leaving].wait_end(), Some(0), "a node that has left ends by itself");
        settled(&cluster, &(0..leaving).collect::<Vec<_>>());
    }
    assert_eq!(present(&cluster[0]), names(&cluster, &[0]));
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
    assert_eq!(report.failed_requests(), failed, "{report}");
}
