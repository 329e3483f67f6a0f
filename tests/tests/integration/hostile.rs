//! Hostile guests, files and packets: each gets a clear error, and the next command works.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use annulus_tests::client::{Applied, Operator};
use annulus_tests::guests::{component, component_with};
use annulus_tests::harness::{Cluster, Node, until};
use annulus_tests::load::{Load, Settings};
use rand::{Rng, RngExt};
use serde_json::json;

/// Start a light load beside the test.
fn beside(cluster: &Cluster) -> Load {
    let settings = Settings {
        clients: 4,
        keys: 400,
        rest: Duration::from_millis(2),
        surveys: false,
        ..Settings::default()
    };
    let load = Load::new(settings, &[&cluster[0]]);
    load.fill();
    load.go();
    load
}

#[test]
fn a_misbehaving_guest_affects_no_other_module() {
    let cluster = Cluster::joined(2);
    cluster.deploy("guests/kv");
    cluster.deploy("tests/guests/hostile");
    let load = beside(&cluster);
    let node = &cluster[1];
    node.call("hostile", "put", &["kept", "1"]).unwrap();
    node.call("hostile", "put", &["k", "1"]).unwrap();
    for (command, args, codes) in [
        ("refuse", &["because"][..], &["refused"][..]),
        ("trap", &[], &["trapped", "items-lost"]),
        ("put_and_trap", &["k", "v"], &["items-lost"]),
        ("bomb", &[], &["trapped", "items-lost"]),
        ("deep", &[], &["trapped", "items-lost"]),
        ("huge", &[], &["value-too-large", "trapped", "items-lost"]),
        ("huge", &["9000000"], &["value-too-large"]),
        ("no_cbor", &[], &["failed", "contract-broken"]),
        ("write_in_read", &["k"], &["contract-broken"]),
        ("wrong_key", &["k", "other"], &["contract-broken"]),
        ("homeless", &[], &["contract-broken"]),
        ("big_item", &["k", "2000000"], &["value-too-large"]),
        ("write_and_refuse", &["k"], &["refused"]),
    ] {
        let error = node.call("hostile", &command.replace('_', "-"), args).unwrap_err();
        assert!(codes.contains(&error["code"].as_str().unwrap()), "{command}: {error}");
        // This guest also keeps items in its own memory. If the host refuses a write afterwards, the effect
        // on those items is unknown; the batch for host storage is dropped in any case.
        let refused_afterwards = ["wrong_key", "homeless", "big_item"].contains(&command);
        let lost = error["code"] == "items-lost";
        let state = if refused_afterwards || lost { "unknown" } else { "not-applied" };
        assert_eq!(error["state"], state, "{command}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{command}: {error}");
        assert_eq!(node.call("hostile", "echo", &["still here"]).unwrap(), "still here", "after {command}");
        // The vnode that ran the command also answers the next one.
        node.call("hostile", "put", &["k", "after"]).unwrap();
        assert_eq!(node.call("hostile", "stored", &["k"]).unwrap(), json!(null), "after {command}");
    }
    // Coverage names the partitions that did not reply.
    let everywhere = |command| node.everywhere("hostile", command);
    assert_eq!(everywhere("trap-everywhere").unwrap_err()["missing"].as_array().unwrap().len(), 64);
    assert!(everywhere("keys").is_ok());
    let report = load.verify();
    println!("{report}");
    report.assert_flawless();
}

/// Every callback sleeps in turn. While it sleeps, another module is served, further modules are deployed and a
/// node leaves; and a node whose guest sleeps in `init` restarts and undeploys the module.
#[test]
fn a_sleeping_guest_delays_no_other_module() {
    let mut cluster = Cluster::joined(2);
    cluster.deploy("guests/kv");
    let file = cluster.keep("hostile.wasm", &component("tests/guests/hostile"));
    // Build this guest before the load begins: a build takes long beside it.
    component("tests/guests/stored");
    let sleeps = "nap=handoff-starting,handoff-command,handoff-finished,handoff-cancelled,terminate,delete";
    let deploy = |node: &Node, settings: &[&str]| {
        let mut words = vec!["deploy", file.to_str().unwrap()];
        settings.iter().for_each(|setting| words.extend(["--set", setting]));
        let ran = node.json(&words);
        assert_eq!(ran.code, 0, "{ran:?}");
    };
    deploy(&cluster[0], &[sleeps]);
    for key in 0..40 {
        cluster[0].call("hostile", "put", &[&format!("k{key}"), "1"]).unwrap();
    }
    let load = beside(&cluster);
    let began = Instant::now();
    let error = cluster[0].json(&["call", "hostile", "nap", "--timeout", "20s"]).json()["error"].take();
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    assert!(["deadline-exceeded", "items-lost"].contains(&error["code"].as_str().unwrap()), "{error}");
    // While the swap waits for vnodes that sleep in `terminate`, another module is deployed and runs
    // everywhere.
    std::thread::scope(|threads| {
        threads.spawn(|| deploy(&cluster[0], &[sleeps, "reject=none"]));
        cluster.deploy("tests/guests/stored");
        cluster[1].call("stored", "put", &["k", "v"]).unwrap();
    });
    let left = cluster[1].json(&["leave", "--timeout", "120s"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert_eq!(cluster[0].call("stored", "get", &["k"]).unwrap(), "v");
    let report = load.verify();
    println!("{report}");
    report.assert_flawless();

    // `init` sleeps from a time that no trial call has reached.
    let from = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(20);
    let fail_after = format!("fail-after={}", from.as_millis());
    deploy(&cluster[0], &["fail=nap", &fail_after]);
    assert_eq!(cluster[0].stop(), Some(0));
    let wait = (UNIX_EPOCH + from).duration_since(SystemTime::now()).unwrap_or_default();
    std::thread::sleep(wait);
    cluster[0].start();
    assert_eq!(cluster[0].json(&["status"]).code, 0);
    cluster[0].call("kv", "put", &["k", "v"]).unwrap();
    assert_eq!(cluster[0].json(&["undeploy", "hostile"]).code, 0);
    assert_eq!(cluster[0].call("kv", "get", &["k"]).unwrap(), "v");
}

#[test]
fn an_endless_loop_costs_other_vnodes_no_more_than_a_busy_core() {
    let cluster = Cluster::apart(1);
    // The items are in memory: the pauses of a disk that other tests use are longer than those that are compared here.
    let kv = cluster.keep("kv.wasm", &component("guests/kv"));
    let deployed = cluster[0].json(&["deploy", kv.to_str().unwrap(), "--storage", "memory"]);
    assert_eq!(deployed.code, 0, "{deployed:?}");
    cluster.deploy("tests/guests/hostile");
    let load = beside(&cluster);
    let window = Duration::from_secs(3);

    load.phase("beside a native thread");
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::hint::black_box(());
            }
        });
        std::thread::sleep(window);
        stop.store(true, Ordering::Relaxed);
    });
    load.phase("beside a guest that loops");
    let began = Instant::now();
    let spin = ["call", "hostile", "spin", "--timeout", "3s"];
    let error = cluster[0].json(&spin).json()["error"].take();
    assert_eq!(error["code"], "deadline-exceeded", "{error}");
    assert!(began.elapsed() < 2 * window, "{:?}", began.elapsed());
    load.phase("after");

    // A command to the same vnode waits until the time limit of the first ends it, and is then answered.
    let words = ["call", "hostile", "put-and-spin", "k", "v", "--timeout", "500ms"];
    let error = cluster[0].json(&words).json()["error"].take();
    assert_eq!((&error["code"], &error["state"]), (&json!("deadline-exceeded"), &json!("unknown")));
    assert_eq!(
        cluster[0].json(&["call", "hostile", "stored", "k", "--timeout", "20s"]).json(),
        json!({"ok": null})
    );

    let report = load.verify();
    println!("{report}");
    report.assert_flawless();
    let native = report.phase("beside a native thread").quantile(0.99);
    let guest = report.phase("beside a guest that loops").quantile(0.99);
    // The guarantee is a factor of two; one time slice of a core is added for this machine.
    assert!(guest < 2 * native + Duration::from_millis(20), "native {native:?}, guest {guest:?}");
}

#[test]
fn a_full_mailbox_refuses_commands_at_once() {
    let cluster = Cluster::apart(1);
    cluster.deploy("tests/guests/hostile");
    let limit = Duration::from_secs(15);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let flood = async |data: PathBuf| {
        // One command occupies the vnode, a full mailbox waits, and the rest is refused.
        let mut connections = Vec::new();
        for _ in 0..60 {
            connections.push(Operator::connect(&data).await);
        }
        let key = || vec![("key".into(), "k".into()), ("value".into(), 1.into())];
        let mut calls = tokio::task::JoinSet::new();
        for (number, operator) in connections.into_iter().enumerate() {
            let operator = std::sync::Arc::new(operator.unwrap());
            for _ in 0..25 {
                let (operator, args) = (operator.clone(), key());
                let command = if number == 0 { "put-and-spin" } else { "put" };
                calls.spawn(async move {
                    let began = Instant::now();
                    (operator.call("hostile", command, args, limit).await, began.elapsed())
                });
            }
        }
        calls.join_all().await
    };
    let answers = runtime.block_on(flood(cluster[0].data.clone()));
    let turned_away: Vec<_> =
        answers.iter().filter_map(|(answer, took)| Some((answer.as_ref().err()?, took))).collect();
    let overloaded = turned_away.iter().filter(|(failure, _)| failure.code == "overloaded");
    assert!(overloaded.clone().count() > 100, "{turned_away:?}");
    for (failure, took) in overloaded {
        assert!(
            failure.applied == Applied::No && **took < Duration::from_secs(3),
            "{failure:?} after {took:?}"
        );
    }
    until("the vnode serves again", || cluster[0].call("hostile", "put", &["k", "v"]).ok());
}

#[test]
fn invalid_components_are_refused_with_the_reason_and_change_nothing() {
    let cluster = Cluster::joined(2);
    cluster.deploy("guests/kv");
    let kv = component("guests/kv");
    let hostile = |feature| component_with("tests/guests/hostile", &[feature]);
    let mut damaged = kv.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0xff);
    // Guests are built before the load begins: a build takes long beside it.
    let file = cluster.keep("hostile.wasm", &component("tests/guests/hostile"));
    let invalid = [
        ("a truncated component", kv[..kv.len() / 2].to_vec(), "invalid-component"),
        ("a damaged component", damaged, "invalid-component"),
        ("nothing", Vec::new(), "invalid-component"),
        ("text", b"Lorem ipsum dolor sit amet".to_vec(), "invalid-component"),
        ("a core module", b"\0asm\x01\0\0\0".to_vec(), "invalid-component"),
        ("a component of another world", b"\0asm\x0d\0\x01\0".to_vec(), "invalid-component"),
        ("a describe that traps", hostile("describe-traps"), "invalid-component"),
        ("a describe that never ends", hostile("describe-spins"), "invalid-component"),
        ("a describe that sleeps", hostile("describe-naps"), "invalid-component"),
        ("a describe that lies", hostile("describe-lies"), "invalid-component"),
        ("a describe of 9 MB", hostile("describe-fat"), "invalid-component"),
    ];
    let load = beside(&cluster);
    let before = cluster[1].json(&["modules"]).json();
    for (what, bytes, code) in invalid {
        let wrong = cluster.keep("wrong.wasm", &bytes);
        let ran = cluster[0].json(&["deploy", wrong.to_str().unwrap(), "--name", "kv"]);
        let error = &ran.json()["error"];
        // The command line does not send a file that does not start like WebAssembly.
        let expected = if bytes.starts_with(b"\0asm") { code } else { "usage" };
        assert_eq!(error["code"], expected, "{what}: {error}");
        assert!(ran.code > 0 && error["state"] == "not-applied", "{what}: {ran:?}");
        assert!(error["message"].as_str().unwrap().len() > 20, "{what}: {error}");
        println!("{what}: {}", error["message"]);
    }
    for fail in ["trap", "spin", "nap", "because"] {
        let ran = cluster[0].json(&["deploy", file.to_str().unwrap(), "--set", &format!("fail={fail}")]);
        let error = &ran.json()["error"];
        assert!(ran.code == 1 && error["state"] == "not-applied", "{fail}: {ran:?}");
        println!("init {fail}: {error}");
    }
    assert_eq!(cluster[1].json(&["modules"]).json(), before);
    let report = load.verify();
    println!("{report}");
    report.assert_flawless();
}

#[test]
fn random_packets_have_no_effect() {
    let cluster = Cluster::joined(2);
    cluster.deploy("guests/kv");
    let load = beside(&cluster);
    load.phase("junk");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = rand::rng();
    let mut packet = [0; 1400];
    for number in 0..20_000 {
        random.fill_bytes(&mut packet);
        let length = match number % 4 {
            // The packet has any length, including 0.
            0 => random.random_range(0..packet.len()),
            1 => random.random_range(0..40),
            // The packet starts like one of QUIC: a long header of version 1, Initial and other types.
            2 => {
                let first = 0xc0 | packet[0] & 0x3f;
                packet[..6].copy_from_slice(&[first, 0, 0, 0, 1, 8]);
                packet[14] = 8;
                packet.len()
            }
            // The packet has a short header, of a connection that does not exist.
            _ => {
                packet[0] = 0x40 | packet[0] & 0x3f;
                random.random_range(1..packet.len())
            }
        };
        let to = &cluster[number % 2].listen;
        // A full socket buffer only drops this packet.
        let _ = socket.send_to(&packet[..length], to);
    }
    load.phase("after");
    cluster[1].call("kv", "put", &["k", "v"]).unwrap();
    assert_eq!(cluster[0].call("kv", "get", &["k"]).unwrap(), "v");
    let report = load.report();
    assert!(report.phase("junk").requests > 10, "{report}");
    cluster[0].call("kv", "delete", &["k"]).unwrap();
    let report = load.verify();
    println!("{report}");
    report.assert_flawless();
}
