//! riak_test `verify_staged_clustering`: nothing happens before a commit, a commit needs a plan, and several
//! changes are carried out together exactly as planned.

use annulus_tests::harness::{Cluster, Node, owned_by, ring, until};
use serde_json::Value;

use super::common::{done, loaded, members, refused, settings, settled, token};

/// Join with `--stage` and wait until the node is listed as joining.
fn stage_join(cluster: &Cluster, joining: usize, by: usize) {
    let (member, token) = (&cluster[by], token(&cluster[by]));
    done(&cluster[joining].json(&["join", &member.listen, "--token", &token, "--stage"]));
    let name = &cluster[joining].name;
    until("the node is joining", || {
        (members(member).get(name).is_some_and(|status| status == "joining")).then_some(())
    });
}

fn plan(node: &Node) -> Value {
    done(&node.json(&["plan"])).json()
}

fn id(plan: &Value) -> String {
    plan["plan"].as_str().unwrap().to_owned()
}

/// Return the number of partitions that a node will own according to a plan.
fn will_own(plan: &Value, name: &str) -> u64 {
    let rows = plan["nodes"].as_array().unwrap();
    rows.iter().find(|row| row["node"] == name).unwrap()["will_own"].as_u64().unwrap()
}

#[test]
fn changes_are_staged_planned_cleared_and_committed_as_one() {
    let mut cluster = Cluster::apart(5);
    cluster.deploy("guests/kv");
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name.clone()).collect();
    let load = loaded(settings(), &cluster, &[0]);

    // A commit without staged changes is refused; two joins are staged, and the ring does not change.
    refused(&cluster[0].json(&["commit"]), "nothing is staged");
    let before = ring(&cluster[0]);
    stage_join(&cluster, 1, 0);
    let early = plan(&cluster[0]);
    stage_join(&cluster, 2, 1);
    refused(&cluster[0].json(&["commit", &id(&early)]), "changed");
    assert_eq!(ring(&cluster[0]), before);
    // Any node shows the plan and commits it; the ring becomes as planned.
    let joins = plan(&cluster[2]);
    let will: Vec<u64> = names[..3].iter().map(|name| will_own(&joins, name)).collect();
    assert_eq!(will.iter().sum::<u64>(), 64);
    done(&cluster[1].json(&["commit", &id(&joins)]));
    settled(&cluster, &[0, 1, 2]);
    let own: Vec<u64> = names[..3].iter().map(|name| owned_by(&cluster[2], name).len() as u64).collect();
    assert_eq!(own, will);

    // Cleared changes do not happen; the joining node continues to wait.
    done(&cluster[1].json(&["leave", &names[0], "--stage"]));
    stage_join(&cluster, 3, 2);
    done(&cluster[2].json(&["clear"]));
    assert_eq!(plan(&cluster[0])["plan"], Value::Null);
    refused(&cluster[0].json(&["commit"]), "nothing is staged");
    assert_eq!(members(&cluster[0])[&names[3]], "joining");

    // The new node takes exactly the places of the old one, which ends.
    load.phase("replace");
    let old = owned_by(&cluster[0], &names[1]);
    done(&cluster[0].json(&["replace", &names[1], &names[3], "--stage"]));
    done(&cluster[2].json(&["commit", &id(&plan(&cluster[2]))]));
    assert_eq!(cluster[1].wait_end(), Some(0));
    settled(&cluster, &[0, 2, 3]);
    assert_eq!(owned_by(&cluster[0], &names[3]), old);
    load.pause();
    load.report().assert_flawless();
    load.go();

    // One node is dead, one leaves and one joins, in a single rebalancing.
    load.phase("remove, leave and join");
    stage_join(&cluster, 4, 0);
    cluster[2].kill();
    let lost = owned_by(&cluster[0], &names[2]);
    load.doubt(lost.clone());
    for words in [["remove", &names[2], "--stage"], ["leave", &names[3], "--stage"]] {
        until("it is staged", || (cluster[0].json(&words).code == 0).then_some(()));
    }
    let all = plan(&cluster[0]);
    let warned = all["warnings"].as_array().unwrap().iter().any(|warning| warning["code"] == "possible-loss");
    assert!(warned, "{all}");
    let committed = done(&cluster[0].json(&["commit", &id(&all)])).json();
    let said: std::collections::HashSet<u16> =
        committed["possible_loss"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u16).collect();
    assert_eq!(said, lost);
    assert_eq!(cluster[3].wait_end(), Some(0));
    settled(&cluster, &[0, 4]);
    let status = cluster[4].json(&["status"]).json();
    assert_eq!(status["possible_loss"][0]["node"], names[2].as_str(), "{status}");

    let report = load.verify();
    println!("{report}");
    report.assert_sound();
}
