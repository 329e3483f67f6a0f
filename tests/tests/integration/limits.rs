//! The limits of a guest: time, memory and writes. A guest that exceeds one does not affect its neighbours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use annulus::vnode::{Command, Control, CoveragePage, Outgoing, Release, Reply, StreamEvent, VnodeHandle};
use annulus::wasm::{Engine, Limits, Module};
use annulus_core::contract::TransferKind;
use annulus_core::ids::{RequestId, TransferId};
use annulus_core::item::Item;
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{AppliedState, ErrorCode, Request};
use annulus_tests::guests::{component, component_with};
use annulus_tests::harness::Cluster;
use ciborium::Value;
use tokio::sync::{OnceCell, mpsc, oneshot};

use super::vnode::{Bed, cbor_map};

const HOSTILE: &str = "tests/guests/hostile";
/// The partition of all commands of a [`Bed`].
const PARTITION: PartitionId = PartitionId(3);
/// A call limit short enough for a test.
const SHORT: Duration = Duration::from_millis(300);
/// Longest time for a call to end at the limit [`SHORT`].
const ENDED: Duration = Duration::from_millis(1300);

fn limits() -> Limits {
    Limits { call_time: SHORT, ..Limits::default() }
}

/// Start one vnode of the hostile guest with these settings. The guest is compiled once for all tests.
async fn hostile(settings: &[(&str, Value)]) -> Bed {
    static PREPARED: OnceCell<(Engine, Arc<Module>)> = OnceCell::const_new();
    let prepare = async || {
        let engine = Engine::new().unwrap();
        let module = engine.prepare(component(HOSTILE).into(), limits()).await.unwrap();
        (engine, module)
    };
    let (engine, module) = PREPARED.get_or_init(prepare).await;
    let release = Release::wasm("hostile".into(), 1, module.clone(), cbor_map(settings));
    Bed::of(engine.clone(), Arc::new(release))
}

async fn put(bed: &Bed, key: &str) {
    bed.call("put", &[("key", key.into()), ("value", 1.into())]).await.unwrap();
}

/// Send a control message to the vnode and wait until it has been handled.
async fn tell(bed: &Bed, control: Control) {
    let vnode = bed.master.vnodes(PARTITION).pop().unwrap();
    assert!(vnode.tell(control));
    let (answer, count) = oneshot::channel();
    if vnode.tell(Control::Count(answer)) {
        // A vnode that has ended does not answer.
        let _ = count.await;
    }
}

/// Start a handoff of the vnode and return its events.
async fn hand_off(bed: &Bed) -> mpsc::UnboundedReceiver<StreamEvent> {
    let (sink, events) = mpsc::unbounded_channel();
    let outgoing = Outgoing {
        kind: TransferKind::Ownership,
        target: "b@h".to_owned(),
        sink,
        congested: tokio::sync::watch::channel(false).1,
    };
    assert!(bed.master.begin_outgoing(PARTITION, TransferId(9), outgoing));
    events
}

async fn within_its_limit<T>(what: &str, call: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(30), call).await;
    let answer = answer.unwrap_or_else(|_| panic!("{what} does not end"));
    assert!(began.elapsed() < ENDED, "{what} took {:?}", began.elapsed());
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_sleeps_ends_at_its_limit_and_the_next_is_answered() {
    let bed = hostile(&[]).await;
    put(&bed, "k").await;
    let error = within_its_limit("a command", bed.call("nap", &[])).await.unwrap_err();
    assert!(error.message.contains("longer than 300ms"), "{error:?}");
    assert_eq!(bed.call("get", &[("key", "k".into())]).await.unwrap(), Value::Null, "a new instance answers");
    let page = CoveragePage { after: None, items: 10, bytes: 1 << 20 };
    let page = bed.send("nap-everywhere", None, cbor_map(&[]), Some(page));
    assert!(within_its_limit("a page", page).await.is_err());
    put(&bed, "k").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_and_an_init_that_sleep_are_refused_at_their_limit() {
    let engine = Engine::new().unwrap();
    let naps = component_with(HOSTILE, &["describe-naps"]);
    // Compile the component first, so that the measured call does not include the compilation.
    let _ = engine.prepare(naps.clone().into(), Limits { call_time: Duration::ZERO, ..limits() }).await;
    let error = engine.prepare(naps.into(), limits()).await.err().unwrap();
    assert!(error.to_string().contains("longer than 300ms"), "{error}");
    let module = engine.prepare(component(HOSTILE).into(), limits()).await.unwrap();
    let config = cbor_map(&[("fail", "nap".into())]);
    let init = within_its_limit("init", module.check_init(&config)).await;
    assert!(init.unwrap_err().to_string().contains("longer than 300ms"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callback_that_sleeps_ends_at_its_limit_and_the_vnode_continues() {
    // These callbacks run during a handoff: the guest's consent, a command, its items, and both ends.
    for nap in ["handoff-starting", "handoff-command", "items", "handoff-finished", "handoff-cancelled"] {
        let bed = hostile(&[("nap", nap.into())]).await;
        put(&bed, "k").await;
        let mut events = hand_off(&bed).await;
        let finished = nap == "handoff-finished";
        let over = async {
            let _ = bed.call("put", &[("key", "k".into()), ("value", 2.into())]).await;
            tell(&bed, Control::EndOutgoing { finished }).await;
        };
        within_its_limit(nap, over).await;
        let told = std::iter::from_fn(|| events.try_recv().ok());
        let broken = told.filter(|event| matches!(event, StreamEvent::Broken { .. })).count();
        assert_eq!(broken > 0, !nap.contains("ed"), "{nap}: lost items must be reported to the handoff");
        put(&bed, "k").await;
    }
    for (setting, what) in [("fold", "nap"), ("reject", "nap"), ("nap", "handle-exit")] {
        let bed = hostile(&[(setting, what.into())]).await;
        put(&bed, "k").await;
        let done = async {
            match setting {
                "fold" => {
                    let (answer, page) = oneshot::channel();
                    tell(&bed, Control::Measure { after: None, answer }).await;
                    assert!(page.await.unwrap().is_err());
                }
                "reject" => {
                    let (answer, taken) = oneshot::channel();
                    let item = Item {
                        key: b"k".to_vec(),
                        sort: Vec::new(),
                        value: b"\x01x".to_vec(),
                        deleted: false,
                    };
                    tell(&bed, Control::Items(vec![item], answer)).await;
                    assert!(taken.await.unwrap().is_err());
                }
                _ => {
                    bed.call("trap", &[]).await.unwrap_err();
                    bed.call("calls", &[]).await.unwrap_err();
                }
            }
        };
        within_its_limit(what, done).await;
    }
    for (nap, delete) in [("terminate", false), ("terminate", true), ("delete", true)] {
        let bed = hostile(&[("nap", nap.into())]).await;
        put(&bed, "k").await;
        let (done, ended) = oneshot::channel();
        let error = annulus_core::request::RequestError::stale_ring(2);
        within_its_limit(nap, async {
            tell(&bed, Control::End { error, delete, done }).await;
            ended.await.unwrap();
        })
        .await;
    }
}

type Answer = oneshot::Receiver<Result<bytes::Bytes, annulus_core::request::RequestError>>;

/// Send a command directly to a vnode, which need not be in a partition's slot.
fn send(vnode: &VnodeHandle, command: &str, args: &[(&str, Value)], page: Option<CoveragePage>) -> Answer {
    let (reply, answer) = oneshot::channel();
    let key = args.iter().find(|(name, _)| *name == "key").and_then(|(_, key)| key.as_text());
    let key = key.map(|key| key.as_bytes().to_vec().into());
    let request = Request { command: command.to_owned(), key, args: cbor_map(args).into() };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let reply = Reply::Local(reply);
    assert!(vnode.try_command(Command { request, page, id: RequestId([1; 16]), deadline, reply }));
    answer
}

async fn got(vnode: &VnodeHandle) -> Value {
    let reply = send(vnode, "get", &[("key", "k".into())], None).await.unwrap().unwrap();
    ciborium::from_reader(&reply[..]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_used_by_other_guests_does_not_count_towards_the_limit() {
    let limits = Limits { call_time: Duration::from_millis(800), ..Limits::default() };
    let engine = Engine::new().unwrap();
    let module = engine.prepare(component(HOSTILE).into(), limits).await.unwrap();
    let release = Arc::new(Release::wasm("hostile".into(), 1, module, cbor_map(&[])));
    let bed = Bed::of(engine, release.clone());
    let vnode = bed.master.start_apart(release.clone());
    send(&vnode, "put", &[("key", "k".into()), ("value", 1.into())], None).await.unwrap().unwrap();
    let spins: Vec<_> = (0..12)
        .map(|_| {
            let vnode = bed.master.start_apart(release.clone());
            let answer = send(&vnode, "spin", &[], None);
            (vnode, answer)
        })
        .collect();
    let began = Instant::now();
    send(&vnode, "sleepy", &[("ms", 400.into())], None).await.unwrap().unwrap();
    assert_eq!(got(&vnode).await, Value::from(1));
    println!("400 ms of work took {:?} beside {} loops", began.elapsed(), spins.len());
    for (_vnode, answer) in spins {
        let error = answer.await.unwrap().unwrap_err();
        assert_eq!((error.code, error.state), (ErrorCode::DeadlineExceeded, AppliedState::NotApplied));
    }
}

/// Each page computes for about 200 ms of a limit of 1 s. All pages at once, sharing two workers, would far
/// exceed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_coverage_read_is_answered_by_all_partitions_and_loses_nothing() {
    let limits = Limits { call_time: Duration::from_secs(1), ..Limits::default() };
    let engine = Engine::new().unwrap();
    let module = engine.prepare(component(HOSTILE).into(), limits).await.unwrap();
    let release = Arc::new(Release::wasm("hostile".into(), 1, module, cbor_map(&[])));
    let bed = Bed::of(engine, release.clone());
    let vnodes: Vec<_> = (0..32).map(|_| bed.master.start_apart(release.clone())).collect();
    for vnode in &vnodes {
        send(vnode, "put", &[("key", "k".into()), ("value", 1.into())], None).await.unwrap().unwrap();
    }
    let began = Instant::now();
    let pages: Vec<_> = vnodes
        .iter()
        .map(|vnode| {
            let page = CoveragePage { after: None, items: 10, bytes: 1 << 20 };
            send(vnode, "sleepy-everywhere", &[("ms", 200.into())], Some(page))
        })
        .collect();
    // A command does not wait behind an earlier page that waits for its turn.
    let commands: Vec<_> =
        vnodes.iter().map(|vnode| send(vnode, "get", &[("key", "k".into())], None)).collect();
    for command in commands {
        command.await.unwrap().unwrap();
    }
    let served = began.elapsed();
    for page in pages {
        page.await.unwrap().unwrap();
    }
    println!("commands took {served:?}, all pages {:?}", began.elapsed());
    assert!(served < began.elapsed() / 2, "commands took {served:?} of {:?}", began.elapsed());
    for vnode in &vnodes {
        assert_eq!(got(vnode).await, Value::from(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_loses_items_reports_the_loss() {
    let bed = hostile(&[]).await;
    for command in ["trap", "nap", "spin"] {
        put(&bed, "k").await;
        let error = bed.call(command, &[]).await.unwrap_err();
        assert_eq!((error.code, error.state), (ErrorCode::ItemsLost, AppliedState::Unknown), "{error:?}");
        assert!(error.message.contains("partition 3"), "{error:?}");
        // Now the vnode has no items to lose.
        let error = bed.call("trap", &[]).await.unwrap_err();
        assert_eq!((error.code, error.state), (ErrorCode::Trapped, AppliedState::NotApplied), "{error:?}");
    }
    let incidents = bed.master.incidents();
    let losses = incidents.iter().filter(|incident| incident.kind == "possible-loss");
    assert_eq!(losses.map(|incident| incident.times).sum::<u64>(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_vnode_refuses_writes_until_items_are_deleted() {
    let limits = Limits { memory_bytes: 16 << 20, ..Limits::default() };
    let engine = Engine::new().unwrap();
    let module = engine.prepare(component("guests/memkv").into(), limits).await.unwrap();
    let bed = Bed::of(engine, Arc::new(Release::wasm("memkv".into(), 1, module, cbor_map(&[]))));
    let value = Value::from("x".repeat(100_000));
    let write = async |key: &str| bed.call("put", &[("key", key.into()), ("value", value.clone())]).await;
    let mut stored = 0;
    let error = loop {
        match write(&format!("k{stored}")).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 1000, "the vnode never fills up");
    };
    assert_eq!((error.code, error.state), (ErrorCode::PartitionFull, AppliedState::NotApplied), "{error:?}");
    assert!(stored > 50, "full with {stored} items");
    assert_eq!(bed.keys().await.len(), stored, "nothing is lost");
    assert!(bed.call("get", &[("key", "k0".into())]).await.unwrap().is_text());
    for key in 0..stored / 2 {
        bed.call("delete", &[("key", format!("k{key}").into())]).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = write("new").await {
        assert_eq!(error.code, ErrorCode::PartitionFull, "{error:?}");
        assert!(Instant::now() < deadline, "the vnode stays full");
        tokio::task::yield_now().await;
    }
    assert_eq!(bed.keys().await.len(), stored - stored / 2 + 1);
    assert!(bed.master.incidents().is_empty(), "{:?}", bed.master.incidents());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_a_callback_that_may_not_write_are_dropped_and_delay_nothing() {
    let written = async |bed: &Bed, callback: &str| {
        bed.call("stored", &[("key", callback.into())]).await.unwrap() != Value::Null
    };
    let engine = Engine::new().unwrap();
    let module = engine.prepare(component(HOSTILE).into(), limits()).await.unwrap();
    let refused = module.check_init(&cbor_map(&[("write", "init".into())])).await.unwrap_err();
    assert!(refused.to_string().contains("`init` wrote to storage"), "{refused}");

    for callback in ["handoff-starting", "handoff-finished", "handoff-cancelled", "handle-exit"] {
        let bed = hostile(&[("write", callback.into())]).await;
        put(&bed, "k").await;
        let mut events = hand_off(&bed).await;
        tell(&bed, Control::EndOutgoing { finished: callback == "handoff-finished" }).await;
        if callback == "handle-exit" {
            bed.call("trap", &[]).await.unwrap_err();
        } else {
            assert_eq!(bed.call("get", &[("key", "k".into())]).await.unwrap(), Value::from(1));
            assert!(events.try_recv().is_err(), "{callback}: the handoff is not affected");
        }
        put(&bed, "after").await;
        assert!(!written(&bed, callback).await, "{callback}");
        let incidents = bed.master.incidents();
        let broken = incidents.iter().find(|incident| incident.kind == "contract-broken");
        assert!(broken.is_some_and(|broken| broken.reason.contains(callback)), "{incidents:?}");
    }
    // Callbacks that take in items or drop them may write.
    let bed = hostile(&[("write", "take,forget".into())]).await;
    put(&bed, "k").await;
    let (answer, taken) = oneshot::channel();
    let item = |deleted| Item { key: b"other".to_vec(), sort: Vec::new(), value: Vec::new(), deleted };
    tell(&bed, Control::Items(vec![item(false)], answer)).await;
    taken.await.unwrap().unwrap();
    assert!(written(&bed, "take").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_without_a_key_may_not_write_whatever_key_the_caller_sends() {
    let bed = hostile(&[]).await;
    put(&bed, "k").await;
    // The caller sends the same key that the command writes to.
    let error = bed.send("homeless", Some("somewhere"), cbor_map(&[]), None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ContractBroken, "{error:?}");
    assert_eq!(bed.call("stored", &[("key", "somewhere".into())]).await.unwrap(), Value::Null);
}

/// Return the number of mappings of a process, and its address space in MiB.
fn spent(process: u32) -> (usize, usize) {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap().lines().count();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    (maps, size.split_whitespace().next().unwrap().parse::<usize>().unwrap() >> 10)
}

#[test]
fn a_vnode_uses_few_mappings_and_little_address_space() {
    let cluster = Cluster::apart_with(1, &["--ring-size", "256"]);
    cluster.deploy("guests/kv");
    let before = spent(cluster[0].process());
    assert!(cluster[0].everywhere("kv", "keys").is_ok());
    let after = spent(cluster[0].process());
    let (maps, size) = ((after.0 - before.0) as f64 / 256.0, (after.1 - before.1) as f64 / 256.0);
    println!("each of 256 vnodes takes {maps:.2} mappings and {size:.1} MiB of address space");
    assert!(maps <= 4.5, "{maps}");
    assert!(size <= 80.0, "{size} MiB");
}

#[test]
fn a_deploy_is_refused_if_a_node_lacks_address_space() {
    let mut cluster = Cluster::apart(1);
    cluster.deploy("tests/guests/stored");
    cluster[0].call("stored", "put", &["k", "v"]).unwrap();
    assert_eq!(cluster[0].stop(), Some(0));
    // This many GiB are enough for the host and one instance in each of 64 partitions, but not for two.
    cluster[0].address_space = Some(7);
    cluster[0].start();
    cluster[0].call("stored", "put", &["k", "v"]).unwrap();
    let kv = cluster.keep("kv.wasm", &component("guests/kv"));
    let ran = cluster[0].json(&["deploy".as_ref(), kv.as_os_str()]);
    let error = &ran.json()["error"];
    assert_eq!((&error["code"], &error["state"]), (&"overloaded".into(), &"not-applied".into()), "{error}");
    assert!(error["message"].as_str().unwrap().contains("ulimit -v"), "{error}");
    assert_eq!(cluster[0].call("stored", "get", &["k"]).unwrap(), "v");
}

#[test]
fn a_release_whose_fold_fails_can_be_replaced_and_the_loss_is_reported() {
    let cluster = Cluster::apart_with(1, &["--ring-size", "8"]);
    let file = cluster.keep("hostile.wasm", &component(HOSTILE));
    let node = &cluster[0];
    let deploy = |words: &[&str]| node.json(&[&["deploy", file.to_str().unwrap()], words].concat());
    let fill = || (0..20).for_each(|n| drop(node.call("hostile", "put", &[&format!("k{n}"), "1"]).unwrap()));
    let left = || (0..20).filter(|n| node.call("hostile", "get", &[&format!("k{n}")]).unwrap() == 1).count();
    // Pages that never end fail the swap, but lose nothing.
    for endless in ["stuck", "empty"] {
        assert_eq!(deploy(&["--set", &format!("fold={endless}")]).code, 0);
        fill();
        let refused = deploy(&["--unset", "fold"]).json()["error"].clone();
        assert_eq!((&refused["code"], &refused["state"]), (&"rolled-back".into(), &"not-applied".into()));
        assert!(refused["message"].as_str().unwrap().contains("does not end"), "{refused}");
        assert_eq!(left(), 20);
        assert_eq!(node.json(&["undeploy", "hostile", "--yes"]).code, 0);
    }
    // A fold that traps loses the items, whichever release follows: the next release runs and reports the loss.
    assert_eq!(deploy(&["--set", "fold=trap"]).code, 0);
    fill();
    let ran = deploy(&["--unset", "fold"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.json()["lost"].as_array().unwrap().len(), 8, "{ran:?}");
    assert_eq!(left(), 0);
    let alerts = node.json(&["status"]).json()["alerts"].to_string();
    assert!(alerts.contains("possible-loss: hostile partitions 0-7"), "{alerts}");
    fill();
    assert_eq!(deploy(&["--set", "nap=delete"]).json()["lost"], serde_json::json!([]));
    assert_eq!(left(), 20);
}

#[test]
fn a_call_limit_is_a_setting_of_the_release() {
    let cluster = Cluster::apart(1);
    let file = cluster.keep("hostile.wasm", &component(HOSTILE));
    let node = &cluster[0];
    let deploy = |limit: Option<&str>| {
        let mut words = vec!["deploy", file.to_str().unwrap()];
        words.extend(limit.map(|_| "--call-limit").into_iter().chain(limit));
        node.json(&words)
    };
    let shown = || {
        let row = node.json(&["modules"]).json()[0].clone();
        (row["version"].as_u64().unwrap(), row["call_ms"].as_u64().unwrap())
    };
    let naps = || node.call("hostile", "nap", &[]).unwrap_err()["message"].as_str().unwrap().to_owned();
    for bad in ["1ms", "1h"] {
        let ran = deploy(Some(bad));
        assert_eq!(ran.json()["error"]["code"], "bad-arguments", "{ran:?}");
    }
    assert_eq!(deploy(None).code, 0);
    assert_eq!(shown(), (1, 5000));
    assert_eq!(deploy(Some("200ms")).code, 0);
    assert_eq!(shown(), (2, 200));
    assert!(naps().contains("longer than 200ms"));
    for same in [None, Some("200ms")] {
        assert_eq!(deploy(same).json()["unchanged"], true);
    }
    assert_eq!(deploy(Some("400ms")).code, 0);
    assert!(naps().contains("longer than 400ms"));
    assert_eq!(node.json(&["rollback", "hostile"]).code, 0);
    assert_eq!(shown(), (4, 200));
    assert!(naps().contains("longer than 200ms"));
    let text = node.cli(&["modules"]).stdout;
    assert!(text.contains("may take 200ms") && text.contains("--call-limit 400ms"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_host_storage_refuses_writes_and_serves_reads_and_deletes() {
    let engine = Engine::new().unwrap();
    let limits = Limits { storage_bytes: 10_000, ..limits() };
    let module = engine.prepare(component("tests/guests/stored").into(), limits).await.unwrap();
    let bed = Bed::of(engine, Arc::new(Release::wasm("stored".into(), 1, module, cbor_map(&[]))));
    let put = async |key: &str, bytes: usize| {
        bed.call("put", &[("key", key.into()), ("value", Value::Bytes(vec![7; bytes]))]).await
    };
    let get = async |key: &str| bed.call("get", &[("key", key.into())]).await.unwrap();
    for key in ["a", "b", "c"] {
        put(key, 3000).await.unwrap();
    }
    let full = put("d", 3000).await.unwrap_err();
    assert_eq!((full.code, full.state), (ErrorCode::PartitionFull, AppliedState::NotApplied), "{full:?}");
    assert_eq!(get("d").await, Value::Null);
    // An item that does not grow replaces another.
    put("a", 2900).await.unwrap();
    bed.call("delete", &[("key", "b".into())]).await.unwrap();
    put("d", 3000).await.unwrap();
    assert_eq!(get("c").await, Value::Bytes(vec![7; 3000]));
}
