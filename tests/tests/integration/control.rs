//! Tests of the control plane with real processes: a killed leader, a lost majority, and an outdated or damaged
//! data directory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use annulus_tests::harness::{Cluster, LIMIT, Node, command, owned_by, ring, until};
use serde_json::Value;

fn claimant(node: &Node) -> Option<String> {
    let rows = node.json(&["members"]).json();
    let row = rows.as_array()?.iter().find(|row| row["claimant"] == true)?;
    Some(row["node"].as_str()?.to_owned())
}

fn quiet(node: &Node) {
    until("no transfer is pending", || ring(node).iter().all(|(_, pending)| pending.is_none()).then_some(()));
}

pub(super) fn three_voters(node: &Node) {
    // Once the ring is balanced, all three nodes have caught up. They become voters shortly afterwards.
    until("the cluster commits changes", || (node.json(&["token"]).code == 0).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
}

#[test]
fn a_new_leader_is_elected_within_seconds_of_the_leaders_death() {
    let mut cluster = Cluster::joined(3);
    quiet(&cluster[0]);
    three_voters(&cluster[0]);
    let leader = claimant(&cluster[1]).unwrap();
    let at = cluster.nodes().iter().position(|node| node.name == leader).unwrap();
    cluster[at].kill();
    let killed = Instant::now();
    let other = &cluster[(at + 1) % 3];
    // Ask at once: the node holds the request until a new leader is elected. Repeat only if the node cancels
    // it.
    let said = until("a token is issued", || (other.json(&["token"]).code == 0).then(|| killed.elapsed()));
    println!("the next change is committed {said:?} after kill -9 of the leader");
    assert!(said < Duration::from_secs(10), "{said:?}");
    let next = claimant(other).unwrap();
    assert_ne!(next, leader);
    cluster[at].start();
    until("the restarted node follows the new leader", || (claimant(&cluster[at])? == next).then_some(()));
}

#[test]
fn a_lost_majority_stops_changes_but_not_requests_and_a_survivor_recovers() {
    let mut cluster = Cluster::joined(3);
    cluster.deploy("guests/kv");
    quiet(&cluster[0]);
    three_voters(&cluster[0]);
    let survivor_name = cluster[0].name.clone();
    let mine = owned_by(&cluster[0], &survivor_name);
    let late = owned_by(&cluster[0], &cluster[1].name);
    let place = |key: &str| {
        let row = cluster[0].json(&["locate", "kv", key]).json();
        u16::try_from(row["partition"].as_u64().unwrap()).unwrap()
    };
    let keys: Vec<String> =
        (0..).map(|n| format!("k{n}")).filter(|key| mine.contains(&place(key))).take(8).collect();
    let foreign = (0..).map(|n| format!("f{n}")).find(|key| late.contains(&place(key))).unwrap();
    for key in &keys {
        cluster[0].call("kv", "put", &[key, "kept"]).unwrap();
    }
    cluster[1].kill();
    cluster[2].kill();
    let all_there = |cluster: &Cluster| {
        for key in &keys {
            assert_eq!(cluster[0].call("kv", "get", &[key]).unwrap(), "kept");
        }
    };
    all_there(&cluster);
    // Request a change as soon as the survivor knows that it is alone.
    until("the survivor knows that the majority is lost", || {
        (cluster[0].json(&["status"]).json()["quorum"] == false).then_some(())
    });
    let asked = Instant::now();
    let refused = cluster[0].json(&["token"]);
    let took = asked.elapsed();
    assert_eq!(refused.code, 1, "{refused:?}");
    let error = &refused.json()["error"];
    assert_eq!((error["code"].as_str(), error["state"].as_str()), (Some("no-quorum"), Some("not-applied")));
    let said = error["message"].as_str().unwrap().to_owned();
    assert!(said.contains("annulus recover") && said.contains(&cluster[1].name), "{said}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    println!("no-quorum after {took:?}: {said}");

    let shown = cluster[0].json(&["recover"]).json();
    assert_eq!((&shown["done"], &shown["needed"]), (&Value::Bool(false), &Value::Bool(true)), "{shown}");
    assert_eq!(shown["lost"].as_array().unwrap().len(), 2);
    assert_eq!(shown["without_owner"].as_array().unwrap().len(), ring(&cluster[0]).len() - mine.len());
    assert_eq!(cluster[0].json(&["token"]).code, 1, "`recover` without `--force` changes nothing");
    let recovered = cluster[0].json(&["recover", "--force"]);
    assert_eq!(recovered.code, 0, "{recovered:?}");
    assert_eq!(recovered.json()["adopted"], serde_json::json!([survivor_name]));
    assert_eq!(cluster[0].json(&["token"]).code, 0);
    all_there(&cluster);
    let again = cluster[0].json(&["recover", "--force"]);
    assert_eq!((again.code, again.json()["error"]["code"].as_str()), (1, Some("not-allowed")), "{again:?}");

    // One node comes back later. It adopts the recovered state and still holds its items.
    cluster[1].start();
    until("the returned node serves requests", || cluster[0].call("kv", "put", &[&foreign, "new"]).ok());
    assert_eq!(cluster[1].call("kv", "get", &[&keys[0]]).unwrap(), "kept");
    until("both nodes have the same ring", || (ring(&cluster[0]) == ring(&cluster[1])).then_some(()));
    until("both nodes know the leader", || (claimant(&cluster[1])? == survivor_name).then_some(()));
    // The other node never comes back. Its partitions get new owners.
    let gone = cluster[2].name.clone();
    let removed = cluster[0].json(&["remove", &gone]);
    assert_eq!(removed.code, 0, "{removed:?}");
    until("the removal is done", || ring(&cluster[1]).iter().all(|(owner, _)| *owner != gone).then_some(()));
    quiet(&cluster[0]);
    for n in 0..40 {
        cluster[n % 2].call("kv", "put", &[&format!("w{n}"), "v"]).unwrap();
    }
    all_there(&cluster);
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_directory_restored_from_an_older_copy_is_refused_with_advice() {
    let mut cluster = Cluster::joined(3);
    quiet(&cluster[0]);
    three_voters(&cluster[0]);
    let copy = cluster.path().join("copy");
    cluster[2].stop();
    copy_dir(&cluster[2].data, &copy);
    cluster[2].start();
    until("the node is a working member again", || (cluster[2].json(&["token"]).code == 0).then_some(()));
    cluster[2].stop();
    fs::remove_dir_all(&cluster[2].data).unwrap();
    copy_dir(&copy, &cluster[2].data);
    cluster[2].start();
    assert_eq!(cluster[2].wait_end(), Some(1));
    let log = cluster[2].log_tail();
    assert!(log.contains("restored from an older copy") && log.contains("--rejoin-as-new"), "{log}");
    assert_eq!(cluster[0].json(&["token"]).code, 0, "the other nodes still commit changes");
}

/// Start a node on this data directory. Return `None` if the node serves, otherwise its output and log.
fn try_start(data: &Path, log: &Path) -> Option<String> {
    let mut child = command()
        .args(["start", "--format", "json", "--with-parent", "--name", "rc_example1@127.0.0.1"])
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:1", "--data"])
        .arg(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(log).unwrap())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let (said, line) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        drop(BufReader::new(stdout).read_line(&mut line));
        drop(said.send(line));
    });
    let line = line.recv_timeout(LIMIT);
    let serves = matches!(&line, Ok(line) if line.contains("\"listen\""));
    if serves {
        drop(child.kill());
    }
    assert!(line.is_ok(), "the node neither serves nor exits");
    child.wait().unwrap();
    (!serves).then(|| line.unwrap_or_default() + &fs::read_to_string(log).unwrap())
}

pub(super) fn files_under(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_under(&path, into) } else { into.push(path) }
    }
}

#[test]
fn a_node_with_a_damaged_file_serves_or_names_the_file_and_deletes_nothing() {
    let mut cluster = Cluster::apart(1);
    for _ in 0..3 {
        assert_eq!(cluster[0].json(&["token"]).code, 0);
    }
    cluster[0].stop();
    let (whole, data) = (cluster[0].data.clone(), cluster.path().join("damaged"));
    let mut files = Vec::new();
    files_under(&whole, &mut files);
    let log = cluster.path().join("damaged.log");
    let mut refused = Vec::new();
    for file in &files {
        let inside = file.strip_prefix(&whole).unwrap();
        let good = fs::read(file).unwrap();
        if inside == Path::new("LOCK") || inside.starts_with("compiled") {
            continue;
        }
        let mut flipped = good.clone();
        if let Some(byte) = flipped.get_mut(good.len() / 2) {
            *byte ^= 0x40;
        }
        for (how, bad) in
            [("flipped", flipped), ("halved", good[..good.len() / 2].to_vec()), ("emptied", Vec::new())]
        {
            if bad == good {
                continue;
            }
            drop(fs::remove_dir_all(&data));
            copy_dir(&whole, &data);
            fs::write(data.join(inside), &bad).unwrap();
            let what = format!("{} {how}", inside.display());
            if let Some(said) = try_start(&data, &log) {
                assert!(said.contains("--rejoin-as-new") || said.contains("remove it"), "{what}: {said}");
                refused.push(what.clone());
                // `db` is exempt: the storage engine may delete its own files there.
                for file in files.iter().filter(|file| !file.starts_with(whole.join("db"))) {
                    let there = data.join(file.strip_prefix(&whole).unwrap());
                    assert!(there.exists(), "{what}: {} is gone", there.display());
                }
            }
        }
    }
    println!("refused: {refused:#?}");
    for name in ["IDENTITY", "node.key", "node.pem", "authorities.pem"] {
        assert!(refused.contains(&format!("{name} flipped")), "{name}: {refused:?}");
    }
    // The remedy that the error names works.
    fs::write(data.join("IDENTITY"), "junk").unwrap();
    let mut anew =
        Node::new("rc_example1@127.0.0.1", &cluster.path().join("anew"), &["--yes", "--rejoin-as-new"]);
    anew.data = data.clone();
    fs::create_dir_all(cluster.path().join("anew")).unwrap();
    anew.start();
    assert_eq!(anew.json(&["token"]).code, 0);
    assert!(data.join("set-aside-1").join("IDENTITY").exists());
}
