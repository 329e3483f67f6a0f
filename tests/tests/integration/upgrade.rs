//! Two builds in one cluster: an older one that speaks only the first protocol versions, and the current one.
//!
//! With `ANNULUS_OLDER=PATH`, a real older build takes the older role instead of the current one.

use annulus_core::version::LEVEL;
use annulus_tests::harness::{Build, Cluster, Node, Ran, pending, until};
use annulus_tests::load::{Load, Settings};

fn older(count: usize) -> Cluster {
    let mut cluster = Cluster::apart(0);
    cluster.build = Build::Older;
    for _ in 0..count {
        cluster.add(&[]);
    }
    for node in &cluster.nodes()[1..] {
        node.join(&cluster[0]);
    }
    cluster
}

fn level(node: &Node) -> u64 {
    node.json(&["status"]).json()["level"].as_u64().unwrap()
}

/// Return the newest state level that each member speaks, as far as the node knows.
fn newest_levels(node: &Node) -> Vec<Option<u64>> {
    let members = node.json(&["members"]).json();
    members.as_array().unwrap().iter().map(|row| row["speaks"]["levels"]["newest"].as_u64()).collect()
}

/// Check that a verb was refused because of members that do not speak the required level, and names them.
fn assert_held_back(ran: &Ran, level: &str, by: &str) {
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains(level) && ran.stderr.contains(by), "{ran:?}");
}

/// The nodes keep their items in memory, so each hands its partitions over before it ends.
#[test]
fn nodes_of_a_newer_build_replace_older_ones_under_load_and_no_request_fails() {
    let mut cluster = older(3);
    cluster.deploy("guests/memkv");
    let load = Load::new(Settings { module: "memkv", keys: 5_000, ..Settings::default() }, &[&cluster[0]]);
    load.fill();
    load.go();
    for leaving in 0..3 {
        cluster.build = Build::This;
        let new = cluster.add(&[]);
        load.phase(&format!("node {} joins", new + 1));
        cluster[new].join(&cluster[leaving]);
        assert_eq!(level(&cluster[new]), 1, "an older node is still a member");
        let staged = cluster[new].cli(&["leave", "--stage"]);
        assert_held_back(&staged, "needs state level 2 and the cluster is at 1", &cluster[leaving].name);

        let staying: Vec<&Node> = cluster.nodes()[leaving + 1..=new].iter().collect();
        load.enter(&staying);
        load.phase(&format!("node {} leaves", leaving + 1));
        let left = cluster[new].json(&["leave", &cluster[leaving].name]);
        assert_eq!(left.code, 0, "{left:?}");
        assert_eq!(cluster[leaving].wait_end(), Some(0));
    }
    load.phase("all new");
    for node in &cluster.nodes()[3..] {
        until("the level is raised", || (level(node) == u64::from(LEVEL)).then_some(()));
    }
    assert_eq!(newest_levels(&cluster[3]), [Some(u64::from(LEVEL)); 3]);
    let staged = cluster[4].cli(&["leave", "--stage"]);
    assert_eq!(staged.code, 0, "{staged:?}");
    assert_eq!(cluster[5].cli(&["clear"]).code, 0);

    // An older node can no longer join, and both sides give the reason.
    cluster.build = Build::Older;
    let late = cluster.add(&[]);
    let token = cluster[3].json(&["token"]).json()["token"].as_str().unwrap().to_owned();
    let refused = cluster[late].cli(&["join", &cluster[3].listen, "--token", &token]);
    assert_held_back(&refused, &format!("state level {LEVEL}"), "speaks 1:");
    assert!(cluster[3].log_tail().contains("speaks 1:"), "{}", cluster[3].log_tail());
    assert!(pending(&cluster[3]).is_empty());

    let report = load.verify();
    println!("{report}");
    report.assert_flawless();
}

#[test]
fn nodes_can_be_restarted_with_a_newer_build_but_not_with_an_older_one_again() {
    let mut cluster = older(3);
    cluster.deploy("guests/memkv");
    for upgraded in 0..3 {
        assert_eq!(cluster[upgraded].stop(), Some(0));
        cluster[upgraded].build = Build::This;
        cluster[upgraded].start();
        let node = &cluster[upgraded];
        // Every node serves, whichever builds the others run.
        let put =
            until("all can be reached", || node.call("memkv", "put", &[&format!("k{upgraded}"), "v"]).ok());
        assert_eq!(put, "ok");
        for asked in cluster.nodes() {
            let key = format!("k{upgraded}");
            let got = until("all can be reached", || asked.call("memkv", "get", &[&key]).ok());
            assert_eq!(got, "v", "{} asked for {key}", asked.name);
        }
        if upgraded < 2 {
            assert_eq!(level(node), 1);
            let last = &cluster[2].name;
            let limit = until("the node knows the versions of the others", || {
                let limit = node.cli(&["transfers", "limit", "3"]);
                limit.stderr.contains("speaks 1").then_some(limit)
            });
            assert_held_back(&limit, "the cluster is at 1", last);
        }
    }
    for node in cluster.nodes() {
        until("the level is raised", || (level(node) == u64::from(LEVEL)).then_some(()));
    }
    let limited = cluster[1].cli(&["transfers", "limit", "3"]);
    assert_eq!(limited.code, 0, "{limited:?}");

    assert_eq!(cluster[2].stop(), Some(0));
    cluster[2].build = Build::Older;
    let refused = cluster[2].start_in_vain();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stdout.contains(&format!("level {LEVEL}")) && refused.stdout.contains("speaks 1"),
        "{refused:?}"
    );
    // The refused start changed nothing.
    cluster[2].build = Build::This;
    cluster[2].start();
    assert_eq!(level(&cluster[2]), u64::from(LEVEL));
    let put = until("all can be reached", || cluster[2].call("memkv", "put", &["k", "v"]).ok());
    assert_eq!(put, "ok");
}
