//! riak_test `verify_leave` and `verify_rejoin`.

use annulus_tests::harness::{Cluster, owned_by};

use super::common::{done, loaded, names, present, settings, settled};

/// `verify_leave`: a leaving node hands off everything, is known to have left, and ends.
/// `verify_rejoin`: it comes back empty during writes, leaves and comes back again.
/// No request fails and no item is lost.
#[test]
fn a_node_leaves_and_comes_back_repeatedly_during_writes() {
    let mut cluster = Cluster::apart(3);
    cluster.deploy("guests/kv");
    for node in [1, 2] {
        cluster[node].join(&cluster[0]);
    }
    let load = loaded(settings(), &cluster, &[0, 1]);
    let leaver = cluster[2].name.clone();
    for round in 1..=2 {
        load.phase(&format!("leaves, {round}"));
        done(&cluster[1].json(&["leave", &leaver]));
        assert_eq!(cluster[2].wait_end(), Some(0));
        settled(&cluster, &[0, 1]);
        assert_eq!(present(&cluster[0]), names(&cluster, &[0, 1]));

        load.phase(&format!("comes back, {round}"));
        // A removed node's identity cannot return; a new directory is a new node, and may have the same name.
        std::fs::remove_dir_all(&cluster[2].data).unwrap();
        cluster[2].start();
        cluster[2].join(&cluster[round - 1]);
        settled(&cluster, &[0, 1, 2]);
        assert!(owned_by(&cluster[0], &leaver).len() >= 21);
    }
    let report = load.verify();
    println!("{report}");
    report.assert_flawless();
}
