//! Vnodes with a real guest, without a network: commands, pages, traps, swaps.

use std::sync::Arc;
use std::time::Duration;

use annulus::vnode::{
    Command, Control, CoveragePage, Delivery, Master, MasterConfig, ModuleSource, Outgoing, Reading, Release,
    Reply, StageId, StreamEvent,
};
use annulus::wasm::{Engine, Limits};
use annulus_core::contract::TransferKind;
use annulus_core::ids::{ModuleUid, NodeId, RequestId, TransferId};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::request::{AppliedState, ErrorCode, Request, RequestError};
use annulus_core::ring::{Partition, RingTable};
use annulus_core::wire::PageAnswer;
use annulus_tests::guests::component;
use bytes::Bytes;
use ciborium::{Value, cbor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

const KV: ModuleUid = ModuleUid(7);

struct OneModule(Arc<Release>);

impl ModuleSource for OneModule {
    fn release(&self, _: ModuleUid) -> Option<Arc<Release>> {
        Some(self.0.clone())
    }
}

pub(super) struct Bed {
    pub(super) master: Master,
    engine: Engine,
}

fn ring() -> RingTable {
    let size = RingSize::try_from(8).unwrap();
    let partition = Partition::held_by(vec![NodeId(0)], 1);
    RingTable { size, epoch: 1, partitions: vec![partition; 8] }
}

async fn release(engine: &Engine, guest: &str, version: u64) -> Arc<Release> {
    let module = engine.prepare(component(guest).into(), Limits::default()).await.unwrap();
    Arc::new(Release::wasm("kv".into(), version, module, cbor_map(&[])))
}

impl Bed {
    async fn with(guest: &str) -> Self {
        let engine = Engine::new().unwrap();
        let module = release(&engine, guest, 1).await;
        Self::of(engine, module)
    }

    pub(super) fn of(engine: Engine, module: Arc<Release>) -> Self {
        let guests = tokio::runtime::Handle::current();
        let modules = Arc::new(OneModule(module));
        let config = MasterConfig {
            me: NodeId(0),
            guests,
            workers: 2,
            modules,
            stores: annulus::storage::Stores::none(),
        };
        let master = Master::new(config, &ring(), &[]);
        master.apply(&ring(), &std::collections::BTreeMap::from([(KV, 1)]), 1, Default::default());
        Self { master, engine }
    }

    pub(super) async fn send(
        &self,
        command: &str,
        key: Option<&str>,
        args: Vec<u8>,
        page: Option<CoveragePage>,
    ) -> Result<Bytes, RequestError> {
        self.deliver(command, key, args, page).await.unwrap()
    }

    /// Put a command into the vnode's mailbox.
    pub(super) fn deliver(
        &self,
        command: &str,
        key: Option<&str>,
        args: Vec<u8>,
        page: Option<CoveragePage>,
    ) -> oneshot::Receiver<Result<Bytes, RequestError>> {
        let (reply, answer) = oneshot::channel();
        let key = key.map(|key| key.as_bytes().to_vec().into());
        let request = Request { command: command.to_owned(), key, args: args.into() };
        let deadline = Instant::now() + Duration::from_secs(10);
        let id = RequestId([1; 16]);
        let command = Command { request, page, id, deadline, reply: Reply::Local(reply) };
        assert!(matches!(self.master.deliver(KV, PartitionId(3), 1, command), Delivery::Taken));
        answer
    }

    pub(super) async fn call(&self, command: &str, args: &[(&str, Value)]) -> Result<Value, RequestError> {
        let key = args.first().and_then(|(_, key)| key.as_text());
        let answer = self.send(command, key, cbor_map(args), None).await?;
        Ok(ciborium::from_reader(&answer[..]).unwrap())
    }

    pub(super) async fn keys(&self) -> Vec<String> {
        let page = CoveragePage { after: None, items: 10_000, bytes: 1 << 20 };
        let answer = self.send("keys", None, cbor_map(&[]), Some(page)).await.unwrap();
        let page: PageAnswer = ciborium::from_reader(&answer[..]).unwrap();
        page.values.iter().map(|value| ciborium::from_reader(&value[..]).unwrap()).collect()
    }
}

pub(super) fn cbor_map(args: &[(&str, Value)]) -> Vec<u8> {
    let map = Value::Map(args.iter().map(|(name, value)| (Value::from(*name), value.clone())).collect());
    let mut bytes = Vec::new();
    ciborium::into_writer(&map, &mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kv_puts_gets_deletes_and_lists_keys() {
    let bed = Bed::with("guests/kv").await;
    assert_eq!(bed.call("get", &[("key", "k1".into())]).await.unwrap(), Value::Null);
    assert_eq!(
        bed.call("put", &[("key", "k1".into()), ("value", "v1".into())]).await.unwrap(),
        Value::from("ok")
    );
    assert_eq!(
        bed.call("put", &[("key", "k2".into()), ("value", cbor!({"a" => 1}).unwrap())]).await.unwrap(),
        Value::from("ok")
    );
    assert_eq!(bed.call("get", &[("key", "k1".into())]).await.unwrap(), Value::from("v1"));
    assert_eq!(bed.keys().await, ["k1", "k2"]);
    assert_eq!(bed.call("delete", &[("key", "k1".into())]).await.unwrap(), Value::from("v1"));
    assert_eq!(bed.call("get", &[("key", "k1".into())]).await.unwrap(), Value::Null);
    assert_eq!(bed.keys().await, ["k2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_transfers_every_item_between_commands() {
    let bed = Bed::with("guests/memkv").await;
    for n in 0..2000 {
        bed.call("put", &[("key", format!("k{n}").into()), ("value", n.into())]).await.unwrap();
    }
    let next = release(&bed.engine, "guests/memkv", 2).await;
    let swap = bed.master.swap(KV, &next);
    let writes = async {
        for n in 0..500 {
            bed.call("put", &[("key", format!("k{n}").into()), ("value", "new".into())]).await.unwrap();
            bed.call("delete", &[("key", format!("k{}", 1000 + n).into())]).await.unwrap();
        }
    };
    let (reports, ()) = tokio::join!(swap, writes);
    let report = reports[0].1.as_ref().unwrap();
    assert!(report.items > 1000, "{report:?}");
    assert_eq!(bed.keys().await.len(), 1500);
    assert_eq!(bed.call("get", &[("key", "k499".into())]).await.unwrap(), Value::from("new"));
    assert_eq!(bed.call("get", &[("key", "k1200".into())]).await.unwrap(), Value::Null);
    assert_eq!(bed.call("get", &[("key", "k1999".into())]).await.unwrap(), Value::from(1999));
}

/// This test runs on one thread, so that messages to a vnode stay in its mailbox until the test waits.
#[tokio::test]
async fn items_received_during_the_swap_of_a_staged_vnode_reach_the_new_instance() {
    let bed = Bed::with("guests/memkv").await;
    for n in 0..1000 {
        bed.call("put", &[("key", format!("k{n:04}").into()), ("value", 1.into())]).await.unwrap();
    }
    let (from, to, transfer) = (PartitionId(3), PartitionId(5), TransferId(9));
    let (sink, mut events) = mpsc::unbounded_channel();
    let outgoing = Outgoing {
        kind: TransferKind::Ownership,
        target: "b@h".to_owned(),
        sink,
        congested: tokio::sync::watch::channel(false).1,
    };
    assert!(bed.master.begin_outgoing(from, transfer, outgoing));
    let (mut items, mut after) = (Vec::new(), None);
    loop {
        assert_eq!(bed.master.read_page(from, transfer, KV, 1, after), Reading::Coming);
        let Some(StreamEvent::Page { page: Ok(page), .. }) = events.recv().await else { panic!("no page") };
        items.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let first = items[0].key.clone();
    let key = String::from_utf8(first).unwrap();
    bed.call("put", &[("key", key.as_str().into()), ("value", 2.into())]).await.unwrap();
    let Some(StreamEvent::Forward { items: update, .. }) = events.recv().await else { panic!("no forward") };

    let stage = StageId { partition: to, transfer, generation: 1 };
    bed.master.stage(stage);
    let staged = bed.master.staged_vnode(stage, KV).unwrap();
    let tell = |items| {
        let (answer, taken) = oneshot::channel();
        staged.tell(Control::Items(items, answer));
        taken
    };
    let all = tell(items);
    let next = release(&bed.engine, "guests/memkv", 2).await;
    assert!(all.await.unwrap().unwrap().rejections.is_empty());
    // The swap starts and transfers its first page; then the forwarded write arrives.
    let (reports, taken) = tokio::join!(bed.master.swap(KV, &next), async { tell(update).await });
    assert!(taken.unwrap().unwrap().rejections.is_empty());
    let report = reports.iter().find(|(partition, _)| *partition == to).unwrap().1.as_ref().unwrap();
    assert!(report.items >= 1000, "{report:?}");

    let (reply, answer) = oneshot::channel();
    let args = cbor_map(&[("key", key.as_str().into())]);
    let request =
        Request { command: "get".to_owned(), key: Some(key.into_bytes().into()), args: args.into() };
    let deadline = Instant::now() + Duration::from_secs(10);
    let id = RequestId([1; 16]);
    assert!(staged.try_command(Command { request, page: None, id, deadline, reply: Reply::Local(reply) }));
    let value: Value = ciborium::from_reader(&answer.await.unwrap().unwrap()[..]).unwrap();
    assert_eq!(value, Value::from(2), "the newer write, not the value that the swap read before it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_commands_and_bad_arguments_change_nothing() {
    let bed = Bed::with("guests/kv").await;
    let error = bed.call("frobnicate", &[("key", "k".into())]).await.unwrap_err();
    assert_eq!(error.code, annulus_core::request::ErrorCode::UnknownCommand);
    let error = bed.call("put", &[("key", "k".into())]).await.unwrap_err();
    assert_eq!(error.code, annulus_core::request::ErrorCode::BadArguments);
    assert!(error.message.contains("value"), "{}", error.message);
    assert!(bed.keys().await.is_empty());
}

/// Size of a reply that the host refuses to deliver.
const TOO_MANY: usize = 9 << 20;

/// Return the keys forwarded into a handoff's stream, each with whether it is a tombstone.
fn forwarded(events: &mut mpsc::UnboundedReceiver<StreamEvent>) -> Vec<(String, bool)> {
    let mut items = Vec::new();
    while let Ok(event) = events.try_recv() {
        let StreamEvent::Forward { items: these, .. } = event else { panic!("{event:?}") };
        items.extend(these.into_iter().map(|item| (String::from_utf8(item.key).unwrap(), item.deleted)));
    }
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_with_a_refused_reply_is_unknown_and_is_forwarded_to_a_handoff() {
    let bed = Bed::with("guests/memkv").await;
    let huge = || Value::from("x".repeat(TOO_MANY));
    for key in ["k1", "k2"] {
        bed.call("put", &[("key", key.into()), ("value", huge())]).await.unwrap();
    }
    let (sink, mut events) = mpsc::unbounded_channel();
    let outgoing = Outgoing {
        kind: TransferKind::Ownership,
        target: "b@h".to_owned(),
        sink,
        congested: tokio::sync::watch::channel(false).1,
    };
    assert!(bed.master.begin_outgoing(PartitionId(3), TransferId(9), outgoing));

    let error = bed.call("delete", &[("key", "k1".into())]).await.unwrap_err();
    assert_eq!((error.code, error.state), (ErrorCode::ValueTooLarge, AppliedState::Unknown), "{error:?}");
    assert_eq!(bed.call("get", &[("key", "k1".into())]).await.unwrap(), Value::Null, "the guest deleted it");
    assert_eq!(forwarded(&mut events), [("k1".to_owned(), true)]);

    let read = bed.call("get", &[("key", "k2".into())]).await.unwrap_err();
    assert_eq!(read.state, AppliedState::NotApplied, "a read changes nothing: {read:?}");
    // The same holds for a page: the reply of `clear` has the keys that it deleted.
    let keys: Vec<String> = (0..5).map(|n| format!("{n}{}", "k".repeat(TOO_MANY / 5))).collect();
    for key in &keys {
        bed.call("put", &[("key", key.as_str().into()), ("value", 1.into())]).await.unwrap();
    }
    assert_eq!(forwarded(&mut events).len(), keys.len());
    let page = CoveragePage { after: None, items: 10, bytes: 64 << 20 };
    let error = bed.send("clear", None, cbor_map(&[]), Some(page)).await.unwrap_err();
    assert_eq!((error.code, error.state), (ErrorCode::ValueTooLarge, AppliedState::Unknown), "{error:?}");
    let cleared: Vec<String> = forwarded(&mut events).into_iter().map(|(key, _)| key).collect();
    assert!(keys.iter().all(|key| cleared.contains(key)) && cleared.contains(&"k2".to_owned()));
}

/// This test runs on one thread, so that all commands are in the mailbox before the vnode runs.
#[tokio::test]
async fn a_write_with_a_refused_reply_is_forwarded_to_a_swap() {
    let bed = Bed::with("guests/memkv").await;
    for n in 1..600 {
        bed.call("put", &[("key", format!("k{n:04}").into()), ("value", n.into())]).await.unwrap();
    }
    bed.call("put", &[("key", "k0000".into()), ("value", "x".repeat(TOO_MANY).into())]).await.unwrap();
    let next = release(&bed.engine, "guests/memkv", 2).await;
    // After this many commands the swap reads a page, which includes the first key.
    let commands = async {
        let put =
            |command, key: &str| bed.deliver(command, Some(key), cbor_map(&[("key", key.into())]), None);
        let gets: Vec<_> = (0..8).map(|_| put("get", "k0001")).collect();
        let deleted = put("delete", "k0000").await.unwrap();
        assert_eq!(gets.len(), 8);
        deleted
    };
    let (reports, error) = tokio::join!(bed.master.swap(KV, &next), commands);
    assert_eq!(error.unwrap_err().state, AppliedState::Unknown);
    assert!(reports[0].1.as_ref().unwrap().items >= 600);
    assert_eq!(bed.call("get", &[("key", "k0000".into())]).await.unwrap(), Value::Null);
}

/// This test runs on one thread, so that all commands are in the mailbox before the vnode runs.
#[tokio::test]
async fn a_guest_that_traps_during_a_swap_is_still_replaced() {
    let bed = Bed::with("tests/guests/hostile").await;
    // Put more items than one page holds.
    for n in 0..600 {
        bed.call("put", &[("key", format!("k{n}").into()), ("value", n.into())]).await.unwrap();
    }
    let next = release(&bed.engine, "guests/memkv", 2).await;
    let trapped = bed.deliver("trap", None, cbor_map(&[]), None);
    let (reports, trapped) = tokio::join!(bed.master.swap(KV, &next), async { trapped.await.unwrap() });
    assert_eq!(trapped.unwrap_err().code, ErrorCode::ItemsLost, "the swap was still in progress");
    assert!(matches!(reports[..], [(PartitionId(3), Ok(_))]), "{reports:?}");
    // The new release answers, without the lost items.
    assert_eq!(bed.call("calls", &[]).await.unwrap_err().code, ErrorCode::UnknownCommand);
    assert_eq!(bed.keys().await, [] as [&str; 0]);
    bed.call("put", &[("key", "k1".into()), ("value", 1.into())]).await.unwrap();
    assert_eq!(bed.keys().await, ["k1"]);
}

/// The final writes of a release are committed, so they must reach a handoff in progress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_final_writes_of_a_swapped_release_are_forwarded_to_a_handoff() {
    let engine = Engine::new().unwrap();
    let bytes = component("tests/guests/stored");
    let module = engine.prepare(bytes.clone().into(), Limits::default()).await.unwrap();
    let config = cbor_map(&[("farewell", "bye".into())]);
    let old = Arc::new(Release::wasm("kv".into(), 1, module.clone(), config.clone()));
    let next = Arc::new(Release::wasm("kv".into(), 2, module, config));
    let bed = Bed::of(engine, old);
    bed.call("put", &[("key", "k".into()), ("value", 1.into())]).await.unwrap();
    let (sink, mut events) = mpsc::unbounded_channel();
    let outgoing = Outgoing {
        kind: TransferKind::Ownership,
        target: "b@h".to_owned(),
        sink,
        congested: tokio::sync::watch::channel(false).1,
    };
    assert!(bed.master.begin_outgoing(PartitionId(3), TransferId(9), outgoing));
    let reports = bed.master.swap(KV, &next).await;
    reports[0].1.as_ref().unwrap();
    assert_eq!(bed.call("get", &[("key", "bye".into())]).await.unwrap(), Value::from("swap"));
    assert_eq!(forwarded(&mut events), [("bye".to_owned(), false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filler_of_a_dropped_stage_cannot_fill_the_next_one() {
    let bed = Bed::with("guests/kv").await;
    let id = |generation| StageId { partition: PartitionId(5), transfer: TransferId(9), generation };
    let (old, new) = (id(1), id(2));
    bed.master.stage(old);
    assert!(bed.master.staged_vnode(old, KV).is_some());
    // The stream restarted, and the filler of the first stage still has items.
    bed.master.stage(new);
    assert!(bed.master.staged_vnode(old, KV).is_none(), "an older stage's filler must not fill this one");
    assert!(
        bed.master.staging_complete(old).await.is_err(),
        "an older stage's end must not complete this one"
    );
    assert!(bed.master.staged_vnode(new, KV).is_some());
    assert_eq!(bed.master.staging_complete(new).await, Ok(()));
}
