//! The output of verbs: it is true, and it names the next step.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use annulus_tests::guests::component;
use annulus_tests::harness::{Cluster, Node, annulus, command, owned_by, until};

#[test]
fn common_guesses_are_verbs_and_printed_commands_can_be_typed() {
    assert!(annulus(&["version"]).text().starts_with("annulus "));
    assert!(annulus(&["--format", "json", "version"]).json()["version"].is_string());
    assert!(annulus(&["help"]).text().contains("Commands:"));
    assert!(annulus(&["help", "deploy"]).text().contains("--timeout"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my shop");
    let ran = annulus(&["new".as_ref(), "shop".as_ref(), "--path".as_ref(), path.as_os_str()]);
    assert!(ran.text().contains(&format!("cd '{}'", path.display())), "{ran:?}");
}

#[test]
fn a_refused_verb_gives_the_reason_and_the_next_step() {
    let cluster = Cluster::apart(2);
    let node = &cluster[0];
    let token = node.cli(&["token"]);
    assert!(token.stderr.contains("lets one node join") && token.stderr.contains("10 min"), "{token:?}");
    // Use the credentials of another cluster.
    let ran = cluster[1].cli(&["--node", &node.listen, "members"]);
    assert!(ran.stderr.contains("of another cluster") && !ran.stderr.contains("running"), "{ran:?}");
    // The time limit is too short, so nothing is done.
    let kv = cluster.keep("kv.wasm", &component("guests/kv"));
    let ran = node.json(&["deploy".as_ref(), kv.as_os_str(), "--timeout".as_ref(), "1ms".as_ref()]);
    let error = &ran.json()["error"];
    assert_eq!(
        (ran.code, &error["code"], &error["state"]),
        (1, &"deadline-exceeded".into(), &"not-applied".into())
    );
    assert_eq!(node.json(&["modules"]).json().as_array().unwrap().len(), 0);
    // Deploy from stdin.
    let deploy = |bytes: &Path| {
        let mut deploy = command();
        deploy.arg("--data").arg(&node.data).args(["deploy", "-"]).stdin(File::open(bytes).unwrap());
        deploy.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
    };
    let ran = deploy(&cluster.keep("core.wasm", b"\0asm\x01\0\0\0"));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.code() == Some(1) && said.contains("annulus build"), "{said}");
    assert!(deploy(&kv).status.success());
    assert_eq!(node.call("kv", "put", &["k", "v"]).unwrap(), "ok");
}

#[test]
fn the_next_step_is_shown_for_a_node_that_left_and_a_staged_one() {
    let mut cluster = Cluster::apart(3);
    cluster[1].join(&cluster[0]);
    let token = cluster[0].cli(&["token"]).text().to_owned();
    let words = ["join", &cluster[0].listen, "--token", &token, "--stage"];
    assert_eq!(cluster[2].cli(&words).code, 0);
    let cleared = cluster[0].cli(&["clear"]);
    assert!(cleared.text().contains(&cluster[2].name) && cleared.text().contains("--stage"), "{cleared:?}");
    // Follow the advice of the message.
    assert_eq!(cluster[2].cli(&words).code, 0);
    assert!(cluster[0].cli(&["plan"]).text().contains("join"));

    let leaver = &mut cluster.nodes_mut()[1];
    assert_eq!(leaver.cli(&["leave"]).code, 0);
    leaver.wait_end();
    let ran = leaver.start_in_vain();
    assert!(ran.stdout.contains("--rejoin-as-new"), "{ran:?}");
}

#[test]
fn the_loss_of_a_removed_node_is_reported_by_module_until_it_is_acknowledged() {
    let mut cluster = Cluster::joined(3);
    cluster.deploy("guests/memkv");
    cluster[2].kill();
    let name = cluster[2].name.clone();
    let removed = until("the others notice that the node is down", || {
        let ran = cluster[0].cli(&["remove", &name]);
        (ran.code == 0).then_some(ran)
    });
    let said = removed.text();
    assert!(said.contains("that it owned went to others") && !said.contains("no partition"), "{said}");
    let losses = |node: &Node| -> Vec<String> {
        let status = node.json(&["status"]).json();
        let alerts =
            status["alerts"].as_array().unwrap().iter().map(|alert| alert.as_str().unwrap().to_owned());
        alerts.filter(|alert| alert.contains("loss")).collect()
    };
    let told = until("the others report the loss", || {
        let told: Vec<String> = [0, 1].iter().flat_map(|at| losses(&cluster[*at])).collect();
        told.iter().any(|alert| alert.contains("without its items")).then_some(told)
    });
    let own: Vec<&String> = told.iter().filter(|alert| alert.contains("without its items")).collect();
    assert!(own.len() <= 2 && own.iter().all(|alert| alert.contains(": memkv partition")), "{told:?}");
    for at in [0, 1] {
        assert_eq!(cluster[at].cli(&["status", "--acknowledge"]).code, 0);
        until("the loss is acknowledged", || losses(&cluster[at]).is_empty().then_some(()));
    }
}

/// A node that restarts reports the loss of items in memory, but only for modules that had an item on it.
#[test]
fn a_restart_reports_losses_only_of_modules_that_had_items() {
    let mut cluster = Cluster::joined(1);
    cluster.deploy("guests/memkv");
    cluster.deploy("guests/kv");
    let named = |cluster: &Cluster| -> Vec<String> {
        let status = cluster[0].json(&["status"]).json();
        let alerts =
            status["alerts"].as_array().unwrap().iter().map(|alert| alert.as_str().unwrap().to_owned());
        alerts.filter(|alert| alert.starts_with("possible-loss: ")).collect()
    };
    let restart = |cluster: &mut Cluster| {
        cluster[0].json(&["status", "--acknowledge"]).text();
        cluster.nodes_mut()[0].kill();
        cluster.nodes_mut()[0].start();
        named(cluster)
    };
    cluster[0].call("memkv", "get", &["k"]).unwrap();
    assert_eq!(restart(&mut cluster), [""; 0], "nothing has been written");
    cluster[0].call("memkv", "put", &["k", "v"]).unwrap();
    let told = restart(&mut cluster);
    assert!(told.iter().any(|line| line.starts_with("possible-loss: memkv:")), "{told:?}");
    assert!(!told.iter().any(|line| line.contains(": kv:")), "{told:?}");
    // The loss is reported once; nothing has been written since.
    until("the cluster has recorded the loss", || {
        let rows = cluster[0].json(&["status"]).json()["possible_loss"].clone();
        (!rows.as_array().unwrap().is_empty()).then_some(())
    });
    until("the node has recorded that both modules are empty", || {
        cluster[0].data.join("empty").read_dir().unwrap().count().eq(&2).then_some(())
    });
    assert_eq!(restart(&mut cluster), [""; 0]);
}

/// The loss of a restarted node is known to the other members, and stays known when the node has left; the
/// alerts of a module end with its undeploy.
#[test]
fn a_loss_by_a_restart_outlives_the_node_but_not_the_module() {
    let mut cluster = Cluster::joined(2);
    cluster.deploy("guests/memkv");
    for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        cluster[0].call("memkv", "put", &[key, "v"]).unwrap();
    }
    let name = cluster[1].name.clone();
    let held: Vec<u16> = owned_by(&cluster[0], &name)
        .into_iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    cluster[1].kill();
    until("the other notices", || {
        let members = cluster[0].json(&["members"]).json();
        let row = members.as_array()?.iter().find(|row| row["node"] == name.as_str())?.clone();
        (row["alive"] == false).then_some(())
    });
    let refused = cluster[0].json(&["leave", &name]);
    assert_eq!(refused.json()["error"]["code"], "not-allowed", "{refused:?}");
    assert!(refused.stdout.contains("does not answer"), "{refused:?}");
    cluster[1].start();
    let lost = |node: &Node| node.json(&["status"]).json()["possible_loss"].clone();
    until("the other member reports the loss", || {
        let row = lost(&cluster[0])[0].clone();
        (row["node"] == name.as_str() && row["partitions"] == serde_json::json!(held)).then_some(())
    });
    let alerts = |node: &Node| node.json(&["status"]).json()["alerts"].to_string();
    assert!(alerts(&cluster[1]).contains("possible-loss: memkv"));
    assert_eq!(cluster[0].json(&["undeploy", "memkv", "--yes"]).code, 0);
    until("the module's alerts go with it", || {
        (!alerts(&cluster[1]).contains("possible-loss: memkv")).then_some(())
    });
    assert_eq!(cluster[0].json(&["leave", &name]).code, 0);
    assert_eq!(lost(&cluster[0])[0]["node"], name.as_str());
    assert_eq!(cluster[0].cli(&["status", "--acknowledge"]).code, 0);
    assert_eq!(lost(&cluster[0]), serde_json::json!([]));
}

/// Return a component that differs from another only in its digest.
fn variant(component: &[u8], number: u8) -> Vec<u8> {
    [component, &[0, 3, 1, b'v', number]].concat()
}

/// Return the names of the files in a node's component directories; components and their code as short digests.
fn files(node: &Node) -> Vec<String> {
    let names = |dir: &str| {
        let entries = fs::read_dir(node.data.join(dir)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let short = |name: String| if name.ends_with("wasm") { name[..12].to_owned() } else { name };
    let mut all: Vec<String> = ["components", "compiled"].into_iter().flat_map(names).map(short).collect();
    all.sort();
    all
}

#[test]
fn files_of_no_release_are_deleted() {
    let mut cluster = Cluster::joined(2);
    let kv = component("guests/kv");
    let digests: Vec<String> = (0..12)
        .map(|number| {
            let file = cluster.keep("variant.wasm", &variant(&kv, number));
            let row =
                cluster[0].json(&["deploy".as_ref(), file.as_os_str(), "--name".as_ref(), "kv".as_ref()]);
            assert_eq!(row.code, 0, "{row:?}");
            row.json()["digest"].as_str().unwrap()[..12].to_owned()
        })
        .collect();
    // Only a component and its compiled code remain for each release that a rollback can reach.
    let kept = |node: &Node, digests: &[String]| {
        let mut all: Vec<String> =
            digests.iter().flat_map(|digest| [digest.clone(), digest.clone()]).collect();
        all.sort();
        until("no other file is present", || (files(node) == all).then_some(()));
    };
    for node in cluster.nodes() {
        kept(node, &digests[2..]);
    }
    assert_eq!(cluster[0].json(&["rollback", "kv"]).code, 0);
    // Create files as a crash, another build and earlier versions leave them.
    let node = &mut cluster.nodes_mut()[1];
    node.kill();
    let old = format!("{}.wasm", "ab".repeat(32));
    for (dir, name) in [
        ("components", "00ff.part"),
        ("components", old.as_str()),
        ("compiled", &format!("{}-0123456789abcdef.1234.part", "cd".repeat(32))),
        ("compiled", &format!("{}-0123456789abcdef.cwasm", "cd".repeat(32))),
    ] {
        let file = File::create(node.data.join(dir).join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    }
    node.start();
    let named = files(&cluster[0]);
    until("left-over files are deleted", || (files(&cluster[1]) == named).then_some(()));
    assert_eq!(cluster[0].cli(&["undeploy", "kv"]).code, 0);
    for node in cluster.nodes() {
        kept(node, &[]);
    }
}
