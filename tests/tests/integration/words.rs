//! Wrong input to every verb: a clear error, the documented exit code, and no loss.

use annulus_tests::harness::{Cluster, Ran, annulus};
use serde_json::json;

/// Return the error of a run with JSON output: code, message, state.
fn error(ran: &Ran) -> (String, String, String) {
    let error = &ran.json()["error"];
    let text = |name: &str| error[name].as_str().unwrap_or_else(|| panic!("{ran:?}")).to_owned();
    (text("code"), text("message"), text("state"))
}

#[test]
fn without_a_node_verbs_exit_with_3_and_name_the_start_command() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    for verb in [
        &["members"][..],
        &["ring"],
        &["transfers"],
        &["transfers", "limit"],
        &["transfers", "pause"],
        &["status"],
        &["modules"],
        &["token"],
        &["leave"],
        &["leave", "--stage", "b@h"],
        &["replace", "a@h", "b@h"],
        &["remove", "a@h"],
        &["down", "a@h"],
        &["plan"],
        &["commit"],
        &["clear"],
        &["join", "127.0.0.1:1", "--token", "t"],
        &["locate", "kv", "k"],
        &["rollback", "kv"],
        &["undeploy", "kv", "--yes"],
        &["call", "kv", "get", "k"],
        &["bench", "kv"],
    ] {
        let text = annulus(&[&["--data", data], verb].concat());
        assert_eq!(text.code, 3, "{verb:?}: {text:?}");
        assert!(text.stdout.is_empty() && text.stderr.contains("annulus start"), "{verb:?}: {text:?}");
        let ran = annulus(&[&["--data", data, "--format", "json"], verb].concat());
        let (code, _, state) = error(&ran);
        assert_eq!((ran.code, code.as_str(), state.as_str()), (3, "unreachable", "not-applied"), "{verb:?}");
    }
}

#[test]
fn invalid_arguments_exit_with_2() {
    for words in [
        &["frobnicate"][..],
        &["replace", "a"],
        &["remove"],
        &["down"],
        &["call"],
        &["locate", "kv", "k", "--ring-size", "63"],
        &["locate", "kv", "0g", "--hex", "--ring-size", "64"],
        &["start", "--name", "nameless"],
        &["start", "--listen", "nowhere"],
        &["start", "--ring-size", "5"],
        &["deploy", "/nonexistent.wasm"],
        &["deploy", "/etc/hostname"],
        &["token", "--ttl", "forever"],
        &["transfers", "limit", "many"],
        &["transfers", "limit", "--incoming"],
        &["transfers", "limit", "--rate", "fast"],
        &["bench", "kv", "--mix", "put=none"],
        &["completions", "tcl"],
    ] {
        let text = annulus(words);
        assert_eq!(text.code, 2, "{words:?}: {text:?}");
        assert!(text.stderr.starts_with("error: "), "{words:?}: {text:?}");
        let ran = annulus(&[&["--format", "json"], words].concat());
        assert_eq!((ran.code, error(&ran).0.as_str()), (2, "usage"), "{words:?}");
    }
}

#[test]
fn locate_needs_no_node_if_the_ring_size_is_given() {
    let row = annulus(&["--format", "json", "locate", "foo", "bar", "--ring-size", "64"]).json();
    assert_eq!(row["hash"], "49d41bea680d96cf005256b77de1ac9a872e0670");
    assert_eq!((&row["partition"], &row["preference_list"]), (&json!(19), &json!([])));
    let by_hex =
        annulus(&["--format", "json", "locate", "foo", "626172", "--hex", "--ring-size", "64"]).json();
    assert_eq!(by_hex, row);
    assert!(annulus(&["completions", "bash"]).text().contains("annulus"));
}

#[test]
fn a_node_refuses_invalid_requests_and_still_serves() {
    let cluster = Cluster::apart(2);
    let node = &cluster[0];
    cluster.deploy("guests/kv");
    let kv = |words: &[&str]| node.json(&[&["call", "kv"], words].concat());
    node.call("kv", "put", &["k", "v"]).unwrap();

    for (words, code, exit) in [
        (&["steal", "k"][..], "unknown-command", 1),
        (&["get"], "usage", 2),
        (&["get", "k", "k"], "usage", 2),
        (&["get", "k", "--arg", "colour=red"], "usage", 2),
        (&["get", "k", "--key", "other"], "usage", 2),
        (&["keys", "--key", "k"], "usage", 2),
    ] {
        let ran = kv(words);
        assert_eq!((ran.code, error(&ran).0.as_str()), (exit, code), "{words:?}: {ran:?}");
    }
    assert_eq!(kv(&["get", "k", "--key", "k"]).json(), json!({"ok": "v"}));
    assert_eq!(kv(&["get", "--arg", "key=k"]).json(), json!({"ok": "v"}));

    let truncated = cluster.keep("truncated.wasm", b"\0asm\x0d\0\x01\0\xff\xff");
    let core_module = cluster.keep("core.wasm", b"\0asm\x01\0\0\0");
    for file in [truncated, core_module] {
        let ran = node.json(&["deploy".as_ref(), file.as_os_str()]);
        assert_eq!((ran.code, error(&ran).0.as_str()), (1, "invalid-component"), "{ran:?}");
    }
    let join = |token: &str, to: &str| node.json(&["join", to, "--token", token]);
    let token = node.json(&["token"]).json()["token"].as_str().unwrap().to_owned();
    for (words, codes) in [
        (node.json(&["call", "nobody", "get", "k"]), &["unknown-module"][..]),
        (node.json(&["rollback", "nobody"]), &["unknown-module"]),
        (node.json(&["rollback", "kv"]), &["not-allowed"]),
        (node.json(&["undeploy", "nobody"]), &["unknown-module"]),
        (node.json(&["leave", "nobody@h"]), &["unknown-node"]),
        (node.json(&["leave"]), &["not-allowed"]),
        (join("junk", &cluster[1].listen), &["bad-arguments"]),
        (join(&token, &node.listen), &["not-allowed"]),
        (join(&token, "no address"), &["bad-arguments"]),
        (node.json(&["bench", "kv", "--mix", "steal"]), &["bad-arguments"]),
        (node.json(&["bench", "kv", "--target", "remote"]), &["bad-arguments"]),
        (node.json(&["bench", "kv", "--mix", "keys"]), &["bad-arguments"]),
        (node.json(&["bench", "nobody"]), &["unknown-module"]),
    ] {
        let (code, message, state) = error(&words);
        assert!(codes.contains(&code.as_str()), "{words:?}");
        assert_eq!((words.code, state.as_str()), (1, "not-applied"), "{words:?}");
        assert!(!message.is_empty());
    }
    // An operator of another cluster has no access here.
    let stranger = cluster[1].json(&["--node", &node.listen, "members"]);
    assert_eq!((stranger.code, error(&stranger).0.as_str()), (3, "unreachable"), "{stranger:?}");

    assert_eq!(node.call("kv", "get", &["k"]).unwrap(), "v");
    assert_eq!(node.json(&["modules"]).json().as_array().unwrap().len(), 1);
    assert_eq!(node.json(&["members"]).json()[0]["owned"], 64);
}

#[test]
fn bench_measures_the_requested_target_and_baselines() {
    let cluster = Cluster::joined(2);
    cluster.deploy("guests/kv");
    let words =
        ["bench", "kv", "--duration", "300ms", "--concurrency", "4", "--target", "remote", "--baseline"];
    let row = cluster[0].json(&words).json();
    for measured in [&row, &row["lane_echo"], &row["native"], &row["wasm"]] {
        assert_eq!(measured["errors"], 0, "{row}");
        assert!(measured["ops"].as_u64().unwrap() > 0, "{row}");
        let at = |name: &str| measured[name].as_u64().unwrap();
        assert!(
            at("p50_us") <= at("p99_us") && at("p99_us") <= at("p999_us") && at("p999_us") <= at("max_us")
        );
    }
    // The benchmark's puts are real: they leave keys on the other node.
    let keys = cluster[0].json(&["call", "kv", "keys"]).lines();
    let nodes: Vec<_> =
        keys.iter().filter(|line| line["values"].as_array().is_some_and(|v| !v.is_empty())).collect();
    assert!(!nodes.is_empty() && nodes.iter().all(|line| line["node"] == "rc_example2@127.0.0.1"));
}

#[test]
fn a_verb_that_ends_frees_its_connection_slot() {
    // A node serves at most 256 operators, and takes 10 s to notice one that disappeared silently.
    let cluster = Cluster::apart(1);
    for turn in 0..300 {
        let ran = cluster[0].json(&["members"]);
        assert_eq!(ran.code, 0, "turn {turn}: {ran:?}");
    }
}

#[test]
fn the_largest_value_is_stored_and_a_larger_one_is_refused() {
    use annulus_core::request::MAX_ARGS_BYTES;
    let cluster = Cluster::joined(2);
    cluster.deploy("guests/memkv");
    let put = |bytes: usize| {
        let file = cluster.keep("value", &vec![b'x'; bytes]);
        cluster[0].json(&["call", "memkv", "put", "k", &format!("@{}", file.display())])
    };
    let most = MAX_ARGS_BYTES - 100;
    let ran = put(most);
    assert_eq!(ran.code, 0, "{:?}", ran.stderr);
    for node in [&cluster[0], &cluster[1]] {
        assert_eq!(node.call("memkv", "get", &["k"]).unwrap().as_str().map(str::len), Some(most));
    }
    let (code, message, state) = error(&put(MAX_ARGS_BYTES));
    assert_eq!((code.as_str(), state.as_str()), ("value-too-large", "not-applied"), "{message}");
    assert_eq!(put(MAX_ARGS_BYTES + 1).code, 2);
    assert_eq!(cluster[1].call("memkv", "get", &["k"]).unwrap().as_str().map(str::len), Some(most));
}

/// An item in host storage has a limit of its own, below that of a command's arguments.
#[test]
fn the_largest_item_of_host_storage_is_stored_and_a_larger_one_is_refused() {
    let cluster = Cluster::joined(2);
    cluster.deploy("guests/kv");
    let put = |bytes: usize| {
        let file = cluster.keep("value", &vec![b'x'; bytes]);
        cluster[0].json(&["call", "kv", "put", "k", &format!("@{}", file.display())])
    };
    let limit = annulus::wasm::Limits::default().item_bytes;
    // The item also has the key and the head of its state.
    let most = limit - 100;
    assert_eq!(put(most).code, 0);
    let (code, message, state) = error(&put(limit));
    assert_eq!((code.as_str(), state.as_str()), ("value-too-large", "not-applied"), "{message}");
    assert_eq!(cluster[1].call("kv", "get", &["k"]).unwrap().as_str().map(str::len), Some(most));
}
