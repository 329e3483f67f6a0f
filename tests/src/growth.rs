//! The main load run: two nodes join a single-node cluster, a changed module is deployed, and one node leaves,
//! all under load.

use std::time::{Duration, Instant};

use crate::guests::component_with;
use crate::harness::{Cluster, pending};
use crate::load::{Load, Report, Settings};

/// Run the load. Each of the four stretches without a change lasts `steady`.
///
/// # Panics
/// If a join, the deploy or the leave fails.
pub fn grow_and_shrink(settings: Settings, steady: Duration) -> Report {
    let cluster = Cluster::apart(3);
    cluster.deploy("guests/kv");
    let changed = cluster.keep("kv-2.wasm", &component_with("guests/kv", &["v2"]));
    let load = Load::new(settings, &[&cluster[0]]);
    load.fill();
    load.go();
    load.phase("one node");
    std::thread::sleep(steady);
    for joining in [1, 2] {
        load.phase(&format!("node {} joins", joining + 1));
        cluster[joining].join(&cluster[0]);
        assert!(pending(&cluster[0]).is_empty(), "no transfer is pending after a join");
    }
    load.enter(&[&cluster[0], &cluster[1], &cluster[2]]);
    load.phase("three nodes");
    std::thread::sleep(steady);

    load.phase("deploy");
    let began = Instant::now();
    let deployed = cluster[1].json(&["deploy".as_ref(), changed.as_os_str()]);
    assert_eq!(deployed.code, 0, "{deployed:?}");
    println!("deployed in {:?}: {}", began.elapsed(), deployed.json());
    load.phase("deployed");
    std::thread::sleep(steady);
    assert!(cluster[2].everywhere("kv", "count").is_ok(), "the changed module runs");

    // Move the clients away from the leaving node before it ends.
    load.enter(&[&cluster[0], &cluster[2]]);
    load.phase("a node leaves");
    let left = cluster[0].json(&["leave", &cluster[1].name]);
    assert_eq!(left.code, 0, "{left:?}");
    assert!(pending(&cluster[0]).is_empty(), "no transfer is pending after a leave");
    load.phase("two nodes");
    std::thread::sleep(steady);
    load.verify()
}
