//! What a guest may use: time, memory, writes. One vnode with a guest that wants more, and its neighbours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use annulus::vnode::{Behaviour, Control, Outgoing, PageWanted, StreamEvent};
use annulus::wasm::{Engine, Limits, TransferKind};
use annulus_core::ids::TransferId;
use annulus_core::keyspace::PartitionId;
use annulus_core::request::ErrorCode;
use annulus_tests::guests::{component, component_with};
use ciborium::Value;
use tokio::sync::{mpsc, oneshot};

use super::vnode::{Bed, cbor_map};

const HOSTILE: &str = "tests/guests/hostile";
/// Where all commands of a [`Bed`] go.
const PARTITION: PartitionId = PartitionId(3);
/// A call limit that a test can wait for.
const SHORT: Duration = Duration::from_millis(300);
/// A call has ended by then.
const ENDED: Duration = Duration::from_millis(1300);

fn limits() -> Limits {
    Limits { call_time: SHORT, ..Limits::default() }
}

/// One vnode of the hostile guest with these settings and limits.
async fn hostile(limits: Limits, settings: &[(&str, Value)]) -> Bed {
    let engine = Engine::new(None).unwrap();
    let module = engine.prepare(component(HOSTILE).into(), limits).await.unwrap();
    let behaviour = Behaviour::wasm("hostile".into(), 1, module, cbor_map(settings));
    Bed::of(engine, Arc::new(behaviour))
}

async fn put(bed: &Bed, key: &str) {
    bed.call("put", &[("key", key.into()), ("value", 1.into())]).await.unwrap();
}

/// Tells the vnode, and waits until it has done what it was told.
async fn tell(bed: &Bed, control: Control) {
    let vnode = bed.master.vnodes(PARTITION).pop().unwrap();
    assert!(vnode.tell(control));
    let (answer, count) = oneshot::channel();
    if vnode.tell(Control::Count(answer)) {
        // None is answered by a vnode that has ended.
        let _ = count.await;
    }
}

/// Has the vnode hand off; what it says comes by the answer.
async fn hand_off(bed: &Bed) -> mpsc::UnboundedReceiver<StreamEvent> {
    let (sink, events) = mpsc::unbounded_channel();
    let outgoing = Outgoing { kind: TransferKind::Ownership, target: "b@h".to_owned(), sink };
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
    let bed = hostile(limits(), &[]).await;
    put(&bed, "k").await;
    let error = within_its_limit("a command", bed.call("nap", &[])).await.unwrap_err();
    assert!(error.message.contains("longer than 300ms"), "{error:?}");
    assert_eq!(bed.call("get", &[("key", "k".into())]).await.unwrap(), Value::Null, "a new instance answers");
    let page = PageWanted { after: None, items: 10, bytes: 1 << 20 };
    let page = bed.send("nap-everywhere", None, cbor_map(&[]), Some(page));
    assert!(within_its_limit("a page", page).await.is_err());
    put(&bed, "k").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_and_an_init_that_sleep_are_refused_at_their_limit() {
    let engine = Engine::new(None).unwrap();
    let naps = component_with(HOSTILE, &["describe-naps"]);
    // Compiled before, so that only the call is measured.
    let _ = engine.prepare(naps.clone().into(), Limits { call_time: Duration::ZERO, ..limits() }).await;
    let error = engine.prepare(naps.into(), limits()).await.err().unwrap();
    assert!(error.to_string().contains("longer than 300ms"), "{error}");
    let module = engine.prepare(component(HOSTILE).into(), limits()).await.unwrap();
    let config = cbor_map(&[("fail", "nap".into())]);
    let init = within_its_limit("init", engine.check_init(&module, &config)).await;
    assert!(init.unwrap_err().to_string().contains("longer than 300ms"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callback_that_sleeps_ends_at_its_limit_and_the_vnode_goes_on() {
    // Asked of a guest that hands off: its say, its fold, its items, and the end.
    for nap in ["handoff-starting", "handoff-command", "items", "handoff-finished", "handoff-cancelled"] {
        let bed = hostile(limits(), &[("nap", nap.into())]).await;
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
        assert_eq!(broken > 0, !nap.contains("ed"), "{nap}: the handoff is told of lost items");
        put(&bed, "k").await;
    }
    for (setting, what) in [("fold", "nap"), ("reject", "nap"), ("nap", "handle-exit")] {
        let bed = hostile(limits(), &[(setting, what.into())]).await;
        put(&bed, "k").await;
        let done = async {
            match setting {
                "fold" => {
                    let (answer, page) = oneshot::channel();
                    tell(&bed, Control::Weigh { after: None, answer }).await;
                    assert!(page.await.unwrap().is_err());
                }
                "reject" => {
                    let (answer, taken) = oneshot::channel();
                    let item = annulus::wasm::Item {
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
        let bed = hostile(limits(), &[("nap", nap.into())]).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_not_ended_for_the_time_of_its_neighbours() {
    let limits = Limits { call_time: Duration::from_millis(800), ..Limits::default() };
    let bed = Arc::new(hostile(limits, &[]).await);
    put(&bed, "k").await;
    // One after the other in the mailbox of this vnode, and beside it neighbours that never end.
    let engine = Engine::new(None).unwrap();
    let module = engine.prepare(component(HOSTILE).into(), limits).await.unwrap();
    let behaviour = Arc::new(Behaviour::wasm("spins".into(), 1, module, cbor_map(&[])));
    let neighbours = Bed::of(engine, behaviour.clone());
    let spins: Vec<_> = (0..12)
        .map(|_| {
            let (reply, answer) = oneshot::channel();
            let request = annulus::wasm::Request { command: "spin".into(), key: None, args: cbor_map(&[]) };
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            let command = annulus::vnode::Command {
                request,
                page: None,
                id: annulus_core::ids::RequestId([1; 16]),
                deadline,
                reply: annulus::vnode::Reply::Local(reply),
            };
            let vnode = neighbours.master.start_apart(behaviour.clone());
            assert!(vnode.try_command(command));
            (vnode, answer)
        })
        .collect();
    let began = Instant::now();
    bed.call("sleepy", &[("ms", 400.into())]).await.unwrap();
    assert_eq!(bed.call("get", &[("key", "k".into())]).await.unwrap(), Value::from(1));
    println!("400 ms of work took {:?} beside {} loops", began.elapsed(), spins.len());
    for (_vnode, answer) in spins {
        let error = answer.await.unwrap().unwrap_err();
        assert!(error.code == ErrorCode::DeadlineExceeded, "{error:?}");
    }
}
