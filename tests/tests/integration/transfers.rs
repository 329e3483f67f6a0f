//! The operator's view and control of handoffs: limits, pauses, the rate, retries and their reasons.

use std::collections::BTreeSet;
use std::time::Duration;

use annulus::cluster::{ProposeError, View};
use annulus::handoff::TransferRow;
use annulus::modules::DeployRequest;
use annulus_core::handoff::TransferState;
use annulus_core::ids::NodeId;
use annulus_core::keyspace::{PartitionId, hash_key};
use annulus_core::state::{Command, HandoffChange, Outcome, Rate};
use annulus_tests::guests::component;
use annulus_tests::inside::{InsideNode, LIMIT};
use ciborium::Value;
use tokio::time::{Instant, sleep, timeout};

fn two() -> (tempfile::TempDir, InsideNode, InsideNode) {
    let dir = tempfile::tempdir().unwrap();
    let start = |name: &str| InsideNode::start(&format!("{name}@127.0.0.1"), &dir.path().join(name));
    let (a, b) = (start("a"), start("b"));
    (dir, a, b)
}

async fn set(node: &InsideNode, changes: &[HandoffChange]) {
    let command = Command::SetHandoff { node: None, changes: changes.to_vec() };
    let cluster = &node.life().cluster;
    let (index, outcome) = cluster.propose(command, Instant::now() + LIMIT).await.unwrap();
    assert_eq!(outcome, Outcome::Done);
    cluster.wait_applied(index, Instant::now() + LIMIT).await.unwrap();
}

fn pending(view: &View) -> BTreeSet<PartitionId> {
    view.state.ring.transfers().map(|(id, _)| id).collect()
}

async fn rows(node: &InsideNode) -> Vec<TransferRow> {
    node.life().services.handoff.transfers().await
}

/// Wait until the rows of `transfers` satisfy `fits`, and return them.
async fn until_rows(
    node: &InsideNode,
    what: &str,
    mut fits: impl FnMut(&[TransferRow]) -> bool,
) -> Vec<TransferRow> {
    let seen = async {
        loop {
            let rows = rows(node).await;
            if fits(&rows) {
                return rows;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    match timeout(LIMIT, seen).await {
        Ok(rows) => rows,
        Err(_) => panic!("never: {what}: {:#?}", rows(node).await),
    }
}

fn partition_of(module: &str, key: &str, view: &View) -> PartitionId {
    view.state.ring.size.partition_of(&hash_key(module.as_bytes(), key.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_rejected_delays_no_other_and_shows_the_reason() {
    let (_dir, a, mut b) = two();
    set(&a, &[HandoffChange::Paused(true), HandoffChange::Outgoing(Some(1))]).await;
    b.join(&a).await;
    let view = a.until("partitions are to move", |view| pending(view).len() == 32).await;
    let paused = until_rows(&a, "all wait", |rows| rows.len() == 32).await;
    assert!(
        paused.iter().all(|row| row.state == TransferState::Waiting
            && row.waiting_for.as_deref() == Some("paused")
            && row.tries == 0),
        "{paused:#?}"
    );

    let key = |n: u32| format!("k{n}");
    let moving = pending(&view);
    let poison = (0..).map(key).find(|key| moving.contains(&partition_of("hostile", key, &view))).unwrap();
    let poisoned = partition_of("hostile", &poison, &view);
    let mut config = Vec::new();
    let reject = Value::Map(vec![("reject".into(), poison.as_str().into())]);
    ciborium::into_writer(&reject, &mut config).unwrap();
    let request = DeployRequest {
        component: component("tests/guests/hostile").into(),
        config: Some(config),
        ..DeployRequest::default()
    };
    let (progress, _) = tokio::sync::mpsc::unbounded_channel();
    a.life().services.modules.deploy(request, progress).await.unwrap();
    for n in 0..500 {
        let args = [("key", key(n).as_str().into()), ("value", n.into())];
        a.call("hostile", "put", &args).await.unwrap();
    }
    assert_eq!(pending(&a.life().cluster.view()), moving, "nothing moves while it is paused");

    set(&a, &[HandoffChange::Paused(false)]).await;
    // Only one transfer may run at a time; the failing one must not block the others.
    a.until("all others have moved", |view| pending(view) == [poisoned].into()).await;
    let failing = until_rows(&a, "it is retried repeatedly", |rows| {
        rows.first().is_some_and(|row| row.tries >= 3 && row.retry_in_ms.is_some())
    })
    .await;
    let row = &failing[0];
    assert_eq!((row.module.as_str(), row.partition), ("hostile", poisoned));
    assert_eq!((row.state, row.waiting_for.as_deref()), (TransferState::Waiting, Some("retry")));
    assert!(row.error.as_ref().is_some_and(|error| error.contains("rejected")), "{row:?}");
    assert!(row.items_total.is_some_and(|total| total >= 1), "{row:?}");
    // The old owner still serves the partition that fails, and the new owner serves the others.
    for n in 0..500 {
        let got = b.call("hostile", "get", &[("key", key(n).as_str().into())]).await.unwrap();
        assert_eq!(got, Value::from(n));
    }

    // An owner that is down is named as the reason.
    a.stop();
    let orphaned = until_rows(&b, "the holder is away", |rows| {
        rows.first().is_some_and(|row| row.waiting_for.as_deref() == Some("holder a@127.0.0.1 is down"))
    })
    .await;
    assert!(orphaned.len() == 1 && orphaned[0].error.is_some(), "{orphaned:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_and_a_pause_take_effect_at_once_and_writes_are_still_forwarded() {
    let (_dir, a, mut b) = two();
    a.deploy(component("guests/kv")).await;
    let (keys, value) = (1500, "v".repeat(4096));
    let put = async |n: i64, value: &str| {
        let args = [("key", format!("k{n}").as_str().into()), ("value", format!("{n}{value}").into())];
        a.call("kv", "put", &args).await.unwrap();
    };
    for n in 0..keys {
        put(n, &value).await;
    }
    let rate = 400_000;
    set(&a, &[HandoffChange::BytesPerSecond(Some(Rate::Bytes(rate)))]).await;
    b.join(&a).await;
    let bytes = |rows: &[TransferRow]| rows.iter().map(|row| row.bytes).sum::<u64>();
    // About three of the six megabytes move. The rows do not show completed transfers, so the test measures the
    // partitions that have moved.
    a.until("half is to move", |view| pending(view).len() == 32).await;
    let began = Instant::now();
    a.until("one is over", |view| pending(view).len() < 32).await;
    let slow = until_rows(&a, "some wait for the rate", |rows| {
        bytes(rows) > 0 && rows.iter().any(|row| row.waiting_for.as_deref() == Some("rate"))
    })
    .await;
    assert!(slow.iter().any(|row| row.items_per_s > 0 || row.items_done > 0), "{slow:#?}");

    set(&a, &[HandoffChange::Paused(true)]).await;
    let held =
        until_rows(&a, "none runs", |rows| rows.iter().all(|row| row.state == TransferState::Waiting)).await;
    assert!(began.elapsed() < Duration::from_secs(7), "at this rate the transfer must take longer");
    assert!(held.len() > 8, "{} are left", held.len());
    for n in 0..keys {
        put(n, "new").await;
    }
    let later = rows(&a).await;
    assert_eq!(later.len(), held.len(), "nothing ends while it is paused");
    assert!(later.iter().all(|row| row.waiting_for.as_deref() == Some("paused")), "{later:#?}");
    let done = |rows: &[TransferRow]| rows.iter().map(|row| row.items_done).sum::<u64>();
    assert!(done(&later) > done(&held), "writes to a started stream are forwarded in it");

    let resumed = Instant::now();
    set(&a, &[HandoffChange::Paused(false), HandoffChange::BytesPerSecond(None)]).await;
    a.until("nothing is pending", |view| pending(view).is_empty()).await;
    println!("{} partitions moved {:?} after the resume", held.len(), resumed.elapsed());
    for n in 0..keys {
        let got = b.call("kv", "get", &[("key", format!("k{n}").as_str().into())]).await.unwrap();
        assert_eq!(got, Value::from(format!("{n}new")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_keeps_its_limit_and_the_sender_shows_the_reason() {
    let (_dir, a, mut b) = two();
    a.deploy(component("guests/kv")).await;
    for n in 0..300 {
        let args = [("key", format!("k{n}").as_str().into()), ("value", "v".repeat(4096).into())];
        a.call("kv", "put", &args).await.unwrap();
    }
    let slow = HandoffChange::BytesPerSecond(Some(Rate::Bytes(100_000)));
    set(&a, &[slow, HandoffChange::Incoming(Some(1))]).await;
    b.join(&a).await;
    let seen = until_rows(&a, "some wait for a turn there", |rows| {
        rows.iter().any(|row| row.waiting_for.as_deref() == Some("turn at b@127.0.0.1"))
    })
    .await;
    // One that has sent everything may have given its turn back, and is shown until its sender hears of the end.
    let sends = |row: &&TransferRow| row.items_total.is_none_or(|total| row.items_done < total);
    let running = seen.iter().filter(|row| row.state == TransferState::Running).filter(sends).count();
    assert!(running <= 1, "{seen:#?}");
    set(&a, &[HandoffChange::Incoming(None), HandoffChange::BytesPerSecond(None)]).await;
    a.until("nothing is pending", |view| pending(view).is_empty()).await;

    // A setting for one node affects only that node; an invalid setting is refused.
    let me = a.life().cluster.me();
    let only = |node, change| Command::SetHandoff { node: Some(node), changes: vec![change] };
    let propose = async |command| a.life().cluster.propose(command, Instant::now() + LIMIT).await;
    propose(only(me, HandoffChange::Outgoing(Some(2)))).await.unwrap();
    let limits = a.life().cluster.view().state.handoff.clone();
    assert_eq!((limits.of(me).outgoing, limits.of_any().outgoing), (2, 4));
    for (node, change) in [
        (me, HandoffChange::Outgoing(Some(0))),
        (me, HandoffChange::Outgoing(Some(1000))),
        (me, HandoffChange::BytesPerSecond(Some(Rate::Bytes(1)))),
        (NodeId(999_999), HandoffChange::Paused(true)),
    ] {
        let refused = propose(only(node, change)).await;
        assert!(matches!(refused, Err(ProposeError::Refused(_))), "{change:?}: {refused:?}");
    }
}
