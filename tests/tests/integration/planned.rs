//! Staged changes and their plans: command-line verbs against nodes inside the test process.

use std::path::Path;
use std::time::Duration;

use annulus::node::NodeConfig;
use annulus_core::keyspace::RingSize;
use annulus_core::state::MemberStatus;
use annulus_tests::guests::component;
use annulus_tests::harness::{Ran, annulus, verb};
use annulus_tests::inside::InsideNode;
use ciborium::Value as Cbor;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Run a verb on a node with JSON output.
fn ask(node: &InsideNode, words: &[&str]) -> Ran {
    verb(&node.config.data, &[&["--format", "json"], words].concat())
}

fn done(node: &InsideNode, words: &[&str]) -> Value {
    let ran = ask(node, words);
    assert_eq!(ran.code, 0, "{words:?}: {ran:?}");
    ran.json()
}

/// Check that a verb fails with exit code 1, this error code, and `says` in its message.
fn refused(node: &InsideNode, words: &[&str], code: &str, says: &str) {
    let ran = ask(node, words);
    let error = ran.json()["error"].clone();
    assert_eq!((ran.code, error["code"].as_str()), (1, Some(code)), "{words:?}: {ran:?}");
    assert_eq!(error["state"], "not-applied", "{words:?}: {ran:?}");
    assert!(error["message"].as_str().unwrap().contains(says), "{words:?}: {ran:?}");
}

fn name(node: &InsideNode) -> String {
    node.config.name.clone()
}

fn node(dir: &TempDir, short: &str) -> InsideNode {
    InsideNode::start(&format!("{short}@127.0.0.1"), &dir.path().join(short))
}

fn address(node: &InsideNode) -> String {
    node.life().address.to_string()
}

fn token(node: &InsideNode, ttl: &str) -> String {
    done(node, &["token", "--ttl", ttl])["token"].as_str().unwrap().to_owned()
}

/// Join through the verb; the node continues as a member of that cluster.
async fn join(node: &mut InsideNode, to: &InsideNode, flags: &[&str]) -> Value {
    let words = ["join", &address(to), "--token", &token(to, "1m")].map(str::to_owned);
    let words: Vec<String> = words.into_iter().chain(flags.iter().map(|&flag| flag.to_owned())).collect();
    let data = node.config.data.clone();
    let verb = tokio::task::spawn_blocking(move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        verb(&data, &[&["--format", "json"], &words[..]].concat())
    });
    node.reborn().await;
    let ran = verb.await.unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()
}

async fn put(node: &InsideNode, keys: std::ops::Range<i64>) {
    for key in keys {
        let args = [("key", format!("k{key}").into()), ("value", key.into())];
        node.call("kv", "put", &args).await.unwrap();
    }
}

async fn get(node: &InsideNode, key: i64) -> Cbor {
    node.call("kv", "get", &[("key", format!("k{key}").into())]).await.unwrap()
}

async fn settled(node: &InsideNode, members: usize) {
    node.until("settled", |view| {
        view.state.live_members().count() == members
            && view.state.is_balanced()
            && view.state.ring.transfers().next().is_none()
    })
    .await;
}

fn share<'a>(plan: &'a Value, node: &str) -> &'a Value {
    plan["nodes"].as_array().unwrap().iter().find(|row| row["node"] == node).unwrap()
}

fn warnings(plan: &Value) -> Vec<&str> {
    plan["warnings"].as_array().unwrap().iter().map(|warning| warning["code"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_makes_exactly_the_moves_that_the_plan_shows() {
    let dir = tempfile::tempdir().unwrap();
    let [a, mut b, mut c, mut d] = ["a", "b", "c", "d"].map(|short| node(&dir, short));
    a.deploy(component("guests/kv")).await;
    join(&mut b, &a, &[]).await;
    join(&mut c, &a, &[]).await;
    put(&a, 0..300).await;
    settled(&a, 3).await;

    refused(&a, &["commit"], "nothing-staged", "--stage");
    assert_eq!(done(&a, &["plan"])["plan"], Value::Null);
    let joined = join(&mut d, &c, &["--stage"]).await;
    assert_eq!((joined["status"].as_str(), joined["staged"].as_str()), (Some("joining"), Some("join")));
    assert_eq!((joined["owned"].as_u64(), joined["replicas"].as_u64()), (Some(0), Some(0)));
    let staged = done(&a, &["leave", "--stage", &name(&b)]);
    let changes = json!([{"change": "join", "node": name(&d)}, {"change": "leave", "node": name(&b)}]);
    assert_eq!(staged["changes"], changes);

    // Every node shows the same plan, including the staged one.
    let plan = done(&a, &["plan"]);
    let id = plan["plan"].as_str().unwrap().to_owned();
    for other in [&b, &c, &d] {
        assert_eq!(done(other, &["plan"])["plan"], plan["plan"]);
    }
    assert_eq!((&plan["changes"], &plan["warnings"]), (&changes, &json!([])));
    let (comes, goes) = (share(&plan, &name(&d)), share(&plan, &name(&b)));
    assert_eq!((comes["becomes"].as_str(), goes["becomes"].as_str()), (Some("member"), Some("leaving")));
    assert_eq!((goes["will_own"].as_u64(), goes["will_hold"].as_u64()), (Some(0), Some(0)));
    let sum = |of: &str| -> u64 {
        let moves = plan["moves"].as_array().unwrap().iter();
        moves
            .filter(|one| one["owner"] == true && one[of] == name(&d))
            .map(|one| one["items"].as_u64().unwrap())
            .sum()
    };
    assert_eq!(comes["items_in"].as_u64(), Some(sum("to")));
    assert!(sum("to") > 50 && comes["bytes_in"].as_u64() > comes["items_in"].as_u64(), "{comes}");
    let text = verb(&a.config.data, &["plan"]);
    assert!(text.text().contains(&format!("plan {id}")) && text.text().contains("WILL OWN"), "{text:?}");

    // Another operator stages a change elsewhere, so the plan shown here is outdated.
    done(&c, &["clear"]);
    done(&c, &["leave", "--stage", &name(&c)]);
    refused(&a, &["commit"], "plan-changed", "annulus plan");
    refused(&b, &["commit", &id], "plan-changed", "annulus plan");
    done(&d, &["clear"]);
    refused(&a, &["commit"], "nothing-staged", "--stage");
    // After `clear` the node still waits; a repeated `join --stage` stages it again.
    let token = token(&a, "1m");
    let again = done(&d, &["join", &address(&a), "--token", &token, "--stage"]);
    assert_eq!((again["status"].as_str(), again["staged"].as_str()), (Some("joining"), Some("join")));
    done(&d, &["leave", "--stage", &name(&b)]);
    let shown = done(&d, &["plan"]);
    let row = done(&d, &["commit", shown["plan"].as_str().unwrap()]);
    assert_eq!((row["settled"].as_bool(), &row["possible_loss"]), (Some(true), &json!([])));
    let moved = plan["moves"].as_array().unwrap().iter().filter(|one| one["owner"] == true).count();
    assert_eq!(row["moved"].as_u64(), Some(moved as u64));
    // The node that ran the verb has applied the end of the leave; another may be one entry behind.
    let gone = name(&b);
    c.until("the node that left is absent here too", |view| view.state.member_by_name(&gone).is_none()).await;
    let members = done(&c, &["members"]);
    let members: Vec<&str> =
        members.as_array().unwrap().iter().map(|row| row["node"].as_str().unwrap()).collect();
    assert_eq!(members, [name(&a), name(&c), name(&d)]);
    for key in 0..300 {
        assert_eq!(get(&d, key).await, Cbor::from(key));
    }
    // The node holds exactly what the plan announced.
    done(&a, &["leave", "--stage", &name(&d)]);
    let now = done(&a, &["plan"]);
    let then = share(&now, &name(&d));
    assert_eq!((&then["items_out"], &then["bytes_out"]), (&comes["items_in"], &comes["bytes_in"]));
    assert_eq!(then["owned"], comes["will_own"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_can_be_removed_and_its_partitions_are_shown_as_a_possible_loss() {
    let dir = tempfile::tempdir().unwrap();
    let [a, mut b, mut c] = ["a", "b", "c"].map(|short| node(&dir, short));
    a.deploy(component("guests/kv")).await;
    join(&mut b, &a, &[]).await;
    join(&mut c, &a, &[]).await;
    settled(&a, 3).await;
    put(&a, 0..60).await;
    let (gone, config) = (name(&c), c.config.clone());
    let up = format!("{gone} is up");
    refused(&a, &["remove", &gone], "not-allowed", &up);
    refused(&a, &["remove", &gone, "--stage"], "not-allowed", &up);
    refused(&a, &["remove", &name(&a)], "not-allowed", "is up");
    refused(&a, &["down", &gone], "not-allowed", &up);
    refused(&a, &["remove", "stranger@h"], "unknown-node", "stranger@h");
    refused(&a, &["down", "stranger@h"], "unknown-node", "stranger@h");
    refused(&a, &["leave", "stranger@h"], "unknown-node", "stranger@h");
    refused(&a, &["leave", "--stage", "stranger@h"], "unknown-node", "stranger@h");
    refused(&a, &["replace", &gone, "stranger@h"], "unknown-node", "stranger@h");
    refused(&a, &["replace", &gone, &gone], "bad-arguments", "itself");
    refused(&a, &["replace", &gone, &name(&b)], "not-allowed", "holds nothing");

    c.stop();
    until_alive(&a, &gone, false).await;
    // A node that is down cannot report its sizes: the plan says unknown, not zero.
    done(&b, &["leave", "--stage", &gone]);
    let plan = done(&a, &["plan"]);
    assert_eq!(share(&plan, &gone)["items_out"], Value::Null, "{plan}");
    assert_eq!(warnings(&plan), ["too-few-nodes", "node-down"]);
    assert!(verb(&a.config.data, &["plan"]).text().contains("unknown"));
    done(&a, &["clear"]);
    refused(&a, &["replace", &gone, &name(&b)], "not-allowed", "annulus down");
    assert_eq!(done(&a, &["down", &gone])["status"], "down");

    // Without a terminal to ask and without `--yes` the verb is refused.
    let data = a.config.data.to_str().unwrap();
    let ran = annulus(&["--data", data, "remove", &gone]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("--yes") && ran.stderr.contains("only copy"), "{ran:?}");
    done(&b, &["remove", &gone, "--stage"]);
    let plan = done(&b, &["plan"]);
    assert_eq!(warnings(&plan), ["possible-loss", "too-few-nodes"]);
    let ran = annulus(&["--data", data, "commit"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("--yes"), "{ran:?}");
    // The node comes back before the commit: it can hand its partitions over, so the removal is refused.
    let back = InsideNode::start_with(config.clone());
    a.until("back", |view| view.state.live_members().all(|member| member.status == MemberStatus::Member))
        .await;
    until_alive(&b, &gone, true).await;
    refused(&b, &["commit"], "not-allowed", &up);
    back.stop();
    until_alive(&b, &gone, false).await;
    let row = done(&b, &["commit"]);
    assert_eq!(row["settled"].as_bool(), Some(true), "{row}");
    let lost = row["possible_loss"].as_array().unwrap().len();
    assert_eq!(share(&plan, &gone)["owned"].as_u64(), Some(lost as u64));
    let status = done(&a, &["status"]);
    assert_eq!(
        (&status["possible_loss"][0]["node"], &status["possible_loss"][0]["partitions"]),
        (&json!(gone), &row["possible_loss"])
    );
    let alerts = status["alerts"].to_string();
    assert!(alerts.contains("possible-loss") && alerts.contains(&gone), "{alerts}");
    // All other items are present, and every partition accepts writes again.
    put(&b, 60..120).await;
    for key in 60..120 {
        assert_eq!(get(&a, key).await, Cbor::from(key));
    }
    assert_eq!(done(&b, &["status", "--acknowledge"])["possible_loss"], json!([]));
    a.until("seen everywhere", |view| view.state.losses.is_empty()).await;
    // The removed node starts again much later.
    let ended = tokio::task::spawn_blocking(move || {
        annulus::node::run(config.clone(), |_| {})
            .map_or_else(|error| error.to_string(), |reason| reason.to_string())
    });
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap().unwrap();
    assert!(ended.contains("was removed") && ended.contains("kept as it is"), "{ended}");
}

/// Wait until a node shows another as alive, or as not alive.
async fn until_alive(node: &InsideNode, other: &str, alive: bool) {
    let until = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let members = done(node, &["members"]);
        let row = members.as_array().unwrap().iter().find(|row| row["node"] == other).unwrap().clone();
        if row["alive"] == alive {
            return;
        }
        assert!(std::time::Instant::now() < until, "{row}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_joins_are_refused_and_leave_the_node_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let [a, mut b, foreign] = ["a", "b", "f"].map(|short| node(&dir, short));
    let (good, to) = (token(&a, "1m"), address(&a));
    a.deploy(component("guests/kv")).await;
    put(&a, 0..5).await;
    refused(&a, &["leave"], "not-allowed", "last member");
    refused(&a, &["leave", "--stage"], "not-allowed", "last member");
    refused(&a, &["join", &to, "--token", &good], "not-allowed", "itself");
    refused(&b, &["join", &address(&foreign), "--token", &good], "unreachable", "");
    refused(&b, &["join", &to, "--token", "junk"], "bad-arguments", "not a join token");
    let ended = token(&a, "1ms");
    refused(&b, &["join", &to, "--token", &ended], "not-allowed", "annulus token");

    let config = NodeConfig { ring_size: Some(RingSize::try_from(32).unwrap()), ..foreign.config.clone() };
    let other = NodeConfig { name: "g@127.0.0.1".into(), data: dir.path().join("g"), ..config };
    let other = InsideNode::start_with(other);
    refused(&other, &["join", &to, "--token", &good], "bad-arguments", "64 partitions");

    // This node has data.
    b.deploy(component("guests/kv")).await;
    put(&b, 100..105).await;
    refused(&b, &["join", &to, "--token", &good], "not-allowed", "--discard");
    assert_eq!(get(&b, 104).await, Cbor::from(104), "the refused join deleted nothing");
    let without_yes = |data: &Path| {
        annulus(&["--data", data.to_str().unwrap(), "join", &to, "--token", &good, "--discard"])
    };
    let ran = without_yes(&b.config.data);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("--yes"), "{ran:?}");
    assert_eq!(get(&b, 104).await, Cbor::from(104));
    join(&mut b, &a, &["--discard"]).await;
    assert_eq!(get(&b, 4).await, Cbor::from(4), "the cluster's items");
    assert_eq!(get(&b, 104).await, Cbor::Null, "the node's own items were discarded");

    let again = token(&a, "1m");
    refused(&b, &["join", &to, "--token", &again], "not-allowed", "already");
    let elsewhere = token(&foreign, "1m");
    refused(&b, &["join", &address(&foreign), "--token", &elsewhere], "not-allowed", "leave that first");
    assert_eq!(done(&a, &["members"]).as_array().unwrap().len(), 2);
}
