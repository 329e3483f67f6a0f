//! A module that one of three nodes cannot store: it stays deployed, the other nodes serve it, and the node
//! that cannot is named until it is repaired.

use std::collections::HashSet;
use std::fs;

use annulus_tests::guests::component;
use annulus_tests::harness::{Cluster, Node, owned_by, until};
use serde_json::json;

/// Return one key of `kv` in each of these partitions.
fn keys_in(node: &Node, partitions: &HashSet<u16>) -> Vec<String> {
    let place = |key: &String| {
        let row = node.json(&["locate", "kv", key]).json();
        u16::try_from(row["partition"].as_u64().unwrap()).unwrap()
    };
    let mut left = partitions.clone();
    let keys = (0..2000).map(|n| format!("k{n}")).filter(|key| left.remove(&place(key)));
    keys.take(partitions.len()).collect()
}

fn why_unable(asked: &Node, name: &str) -> Option<String> {
    let modules = asked.json(&["modules"]).json();
    Some(modules[0]["unable"][name].as_str()?.to_owned())
}

#[test]
fn a_module_that_one_node_cannot_store_stays_deployed_and_the_node_catches_up_after_its_repair() {
    let mut cluster = Cluster::apart_with(3, &["--ring-size", "8"]);
    for node in &cluster.nodes()[1..] {
        node.join(&cluster[0]);
    }
    let name = cluster[2].name.clone();
    let file = cluster.keep("kv.wasm", &component("guests/kv"));
    let deploy = ["deploy".as_ref(), file.as_os_str()];
    // A file replaces the components' directory, so the node cannot store any component.
    let components = cluster[2].data.join("components");
    drop(fs::remove_dir_all(&components));
    fs::write(&components, "in the way").unwrap();

    let refused = cluster[0].json(&deploy);
    let error = &refused.json()["error"];
    assert_eq!((refused.code, &error["state"]), (1, &json!("not-applied")), "{error}");
    assert!(error["message"].as_str().unwrap().contains(&name), "{error}");
    assert_eq!(cluster[1].json(&["modules"]).json(), json!([]), "no node runs a module that one cannot run");

    // A node that is down cannot be asked: the module is deployed without it.
    cluster[2].kill();
    until("it is known to be down", || (cluster[0].json(&["status"]).json()["alive"] == 2).then_some(()));
    let deployed = cluster[0].json(&deploy);
    assert_eq!((deployed.code, &deployed.json()["unreached"]), (0, &json!([name])), "{deployed:?}");
    cluster[2].start();
    for node in cluster.nodes() {
        let reason = until("it is named", || why_unable(node, &name));
        assert!(reason.contains("component"), "{reason}");
        let status = node.json(&["status"]).json();
        let alert = format!("module kv: {name} cannot run version 1");
        assert!(status["alerts"].to_string().contains(&alert), "{status}");
    }
    let theirs = owned_by(&cluster[0], &name);
    let others = (0..8).filter(|id| !theirs.contains(id)).collect();
    let (theirs, others) = (keys_in(&cluster[0], &theirs), keys_in(&cluster[0], &others));
    assert!(!theirs.is_empty() && theirs.len() + others.len() == 8);
    for node in cluster.nodes() {
        for key in &others {
            assert_eq!(node.call("kv", "put", &[key, "kept"]).unwrap(), "ok");
        }
        for key in &theirs {
            let error = node.call("kv", "put", &[key, "not yet"]).unwrap_err();
            assert_eq!(
                (&error["code"], &error["state"]),
                (&json!("not-ready"), &json!("not-applied")),
                "{error}"
            );
        }
    }
    // Every node has exactly the version that was deployed.
    for node in cluster.nodes() {
        let modules = node.json(&["modules"]).json();
        assert_eq!((&modules[0]["name"], &modules[0]["version"]), (&json!("kv"), &json!(1)), "{modules}");
    }

    fs::remove_file(&components).unwrap();
    until("it has caught up by itself", || {
        cluster.nodes().iter().all(|node| why_unable(node, &name).is_none()).then_some(())
    });
    for node in cluster.nodes() {
        for key in &theirs {
            assert_eq!(node.call("kv", "put", &[key, "now"]).unwrap(), "ok");
        }
        for key in &others {
            assert_eq!(node.call("kv", "get", &[key]).unwrap(), "kept");
        }
        assert_eq!(node.json(&["status"]).json()["alerts"].to_string().matches("cannot run").count(), 0);
    }
}
