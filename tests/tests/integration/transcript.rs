//! The tutorial's transcript (chapters 2, 3, 4 and 6), command by command, on real nodes.

use std::collections::{BTreeMap, BTreeSet};

use annulus_tests::harness::{Cluster, Node};
use serde_json::{Value, json};

#[test]
fn the_tutorial_works_as_written() {
    let mut cluster = Cluster::apart(3);
    chapter_2_one_node_pings(&cluster);
    chapter_3_three_nodes_share_the_ring(&cluster);
    chapter_4_a_distributed_store(&cluster);
    chapter_6_coverage(&cluster);
    all_stop_and_start_and_are_back(&mut cluster);
}

fn chapter_2_one_node_pings(cluster: &Cluster) {
    cluster.deploy("guests/ping");
    let mut asked = BTreeSet::new();
    for _ in 0..50 {
        let reply = cluster[0].call("ping", "ping", &[]).unwrap();
        assert_eq!(reply[0], "pong");
        asked.insert(reply[1].as_u64().unwrap());
    }
    // "We get different partitions every time."
    assert!(asked.len() > 10 && asked.iter().all(|id| *id < 64), "{asked:?}");
    let text = cluster[0].cli(&["call", "ping", "ping"]);
    assert!(text.text().starts_with("[\"pong\","), "{text:?}");

    let key: Value = cluster[0].json(&["locate", "ping", "some key"]).json();
    let nodes = key["preference_list"].as_array().unwrap();
    assert_eq!(nodes.as_slice(), [json!({"node": "rc_example1@127.0.0.1", "role": "primary"})]);
}

const ALONE: &str = "\
==================================== Nodes ====================================
Node a: 64 (100.0%) rc_example1@127.0.0.1
==================================== Ring =====================================
aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|aaaa|";

fn chapter_3_three_nodes_share_the_ring(cluster: &Cluster) {
    assert_eq!(cluster[0].cli(&["ring"]).text(), ALONE);
    cluster[1].join(&cluster[0]);
    cluster[2].join(&cluster[0]);
    let pictures: BTreeSet<String> =
        cluster.nodes().iter().map(|node| node.cli(&["ring"]).text().to_owned()).collect();
    assert_eq!(pictures.len(), 1, "every node shows the same ring: {pictures:#?}");
    let picture = pictures.first().unwrap();
    let mut shares: Vec<&str> = picture.lines().skip(1).take(3).map(|line| &line[8..20]).collect();
    shares.sort_unstable();
    assert_eq!(
        shares,
        ["21 ( 32.8%) ", "21 ( 32.8%) ", "22 ( 34.4%) "].map(|share| &share[..12]),
        "{picture}"
    );
    for (letter, line) in ["a", "b", "c"].iter().zip(picture.lines().skip(1)) {
        assert!(line.starts_with(&format!("Node {letter}: ")), "{line}");
        assert!(line.contains("rc_example"), "{line}");
    }
    for node in cluster.nodes() {
        assert_eq!(node.call("ping", "ping", &[]).unwrap()[0], "pong");
    }
}

fn chapter_4_a_distributed_store(cluster: &Cluster) {
    cluster.deploy("guests/kv");
    let [one, two, three] = [&cluster[0], &cluster[1], &cluster[2]];
    let text = |node: &Node, words: &[&str]| node.cli(&[&["call", "kv"], words].concat()).text().to_owned();
    assert_eq!(text(one, &["put", "key1", "value1"]), "ok");
    assert_eq!(text(one, &["put", "key2", "value2"]), "ok");
    assert_eq!(text(one, &["get", "key1"]), "value1");
    assert_eq!(text(two, &["get", "key2"]), "value2");
    assert_eq!(text(one, &["delete", "key1"]), "value1");
    assert_eq!(text(one, &["get", "key1"]), "not_found");
    assert_eq!(one.call("kv", "get", &["key1"]).unwrap(), Value::Null);
    assert_eq!(text(one, &["put", "key3453", "value3453"]), "ok");
    assert_eq!(text(three, &["get", "key3453"]), "value3453");
    assert_eq!(text(three, &["clear"]).lines().count(), 2);
}

fn chapter_6_coverage(cluster: &Cluster) {
    let pairs = [("k1", "v1"), ("k100", "v100"), ("k101", "v101"), ("k444", "v444"), ("k4445", "v4445")];
    for (key, value) in pairs {
        assert_eq!(cluster[0].call("kv", "put", &[key, value]).unwrap(), "ok");
    }
    let owners: BTreeMap<u64, Value> = {
        let ring = cluster[1].json(&["ring"]).json();
        let partitions = ring["partitions"].as_array().unwrap();
        partitions.iter().map(|row| (row["id"].as_u64().unwrap(), row["replicas"][0].clone())).collect()
    };
    let lines = cluster[2].json(&["call", "kv", "keys"]).lines();
    assert_eq!(lines.last().unwrap(), &json!({"complete": true, "missing": []}));
    let mut keys = Vec::new();
    for batch in &lines[..lines.len() - 1] {
        let partition = batch["partition"].as_u64().unwrap();
        assert_eq!(batch["node"], owners[&partition], "the owner answers: {batch}");
        for key in batch["values"].as_array().unwrap() {
            let located = cluster[1].json(&["locate", "kv", key.as_str().unwrap()]).json();
            assert_eq!(located["partition"], partition, "{key} is listed under its own partition");
            keys.push(key.as_str().unwrap().to_owned());
        }
    }
    keys.sort_unstable();
    assert_eq!(keys, pairs.map(|(key, _)| key));
    let mut values = cluster[1].everywhere("kv", "values").unwrap();
    values.sort_by_key(Value::to_string);
    assert_eq!(values, pairs.map(|(_, value)| json!(value)));
}

fn all_stop_and_start_and_are_back(cluster: &mut Cluster) {
    let before = cluster[0].json(&["ring"]).json();
    for node in cluster.nodes_mut() {
        assert_eq!(node.stop(), Some(0), "{}", node.log_tail());
    }
    let gone = cluster[0].json(&["ring"]);
    assert_eq!((gone.code, &gone.json()["error"]["code"]), (3, &json!("unreachable")));
    cluster.nodes_mut().iter_mut().for_each(Node::start);
    // "The nodes join the cluster without the need to call join again."
    annulus_tests::harness::until("every node serves every partition again", || {
        let all = cluster.nodes().iter().all(|node| node.everywhere("kv", "keys").is_ok());
        all.then_some(())
    });
    assert_eq!(cluster[2].json(&["ring"]).json(), before);
    assert_eq!(cluster[1].call("ping", "ping", &[]).unwrap()[0], "pong");
    assert_eq!(cluster[1].call("kv", "put", &["key1", "value1"]).unwrap(), "ok");
    assert_eq!(cluster[2].call("kv", "get", &["key1"]).unwrap(), "value1");
}
