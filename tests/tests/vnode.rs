//! One vnode with a real guest: commands, pages, traps, swaps, without a network.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use annulus::vnode::{
    Behaviour, Command, Control, Delivery, Master, MasterConfig, ModuleSource, Outgoing, PageAnswer,
    PageWanted, Reply, StreamEvent,
};
use annulus::wasm::{Engine, Limits, Request, TransferKind};
use annulus_core::ids::{ModuleUid, NodeId, RequestId, TransferId};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::request::RequestError;
use annulus_core::ring::{Partition, RingTable};
use annulus_tests::guests::component;
use bytes::Bytes;
use ciborium::{Value, cbor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

const KV: ModuleUid = ModuleUid(7);

struct OneModule(Arc<Behaviour>);

impl ModuleSource for OneModule {
    fn behaviour(&self, _: ModuleUid) -> Option<Arc<Behaviour>> {
        Some(self.0.clone())
    }
}

struct Bed {
    master: Master,
    engine: Engine,
}

fn ring() -> RingTable {
    let size = RingSize::try_from(8).unwrap();
    let partition = Partition::held_by(vec![NodeId(0)], 1);
    RingTable { size, epoch: 1, partitions: vec![partition; 8] }
}

async fn behaviour(engine: &Engine, guest: &str, version: u64) -> Arc<Behaviour> {
    let module = engine.prepare(component(guest).into(), Limits::default()).await.unwrap();
    Arc::new(Behaviour::wasm("kv".into(), version, module, cbor_map(&[])))
}

impl Bed {
    async fn with(guest: &str) -> Self {
        let engine = Engine::new(None).unwrap();
        let module = behaviour(&engine, guest, 1).await;
        let guests = tokio::runtime::Handle::current();
        let config = MasterConfig { me: NodeId(0), guests, modules: Arc::new(OneModule(module)) };
        let master = Master::new(config, &ring(), &[]);
        master.apply(&ring(), &[KV], 1);
        Self { master, engine }
    }

    async fn send(
        &self,
        command: &str,
        key: Option<&str>,
        args: Vec<u8>,
        page: Option<PageWanted>,
    ) -> Result<Bytes, RequestError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { command: command.to_owned(), key: key.map(|k| k.as_bytes().to_vec()), args };
        let deadline = Instant::now() + Duration::from_secs(10);
        let id = RequestId([1; 16]);
        let command = Command { request, page, id, deadline, reply: Reply::Local(reply) };
        assert!(matches!(self.master.deliver(KV, PartitionId(3), 1, command), Delivery::Taken));
        answer.await.unwrap()
    }

    async fn call(&self, command: &str, args: &[(&str, Value)]) -> Result<Value, RequestError> {
        let key = args.first().and_then(|(_, key)| key.as_text());
        let answer = self.send(command, key, cbor_map(args), None).await?;
        Ok(ciborium::from_reader(&answer[..]).unwrap())
    }

    async fn keys(&self) -> Vec<String> {
        let page = PageWanted { after: None, items: 10_000, bytes: 1 << 20 };
        let answer = self.send("keys", None, cbor_map(&[]), Some(page)).await.unwrap();
        let page: PageAnswer = ciborium::from_reader(&answer[..]).unwrap();
        page.values.iter().map(|value| ciborium::from_reader(&value[..]).unwrap()).collect()
    }
}

fn cbor_map(args: &[(&str, Value)]) -> Vec<u8> {
    let map = Value::Map(args.iter().map(|(name, value)| (Value::from(*name), value.clone())).collect());
    let mut bytes = Vec::new();
    ciborium::into_writer(&map, &mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kv_puts_gets_deletes_and_lists() {
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
async fn a_swap_carries_every_item_over_between_commands() {
    let bed = Bed::with("guests/kv").await;
    for n in 0..2000 {
        bed.call("put", &[("key", format!("k{n}").into()), ("value", n.into())]).await.unwrap();
    }
    let next = behaviour(&bed.engine, "guests/kv", 2).await;
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

/// On one thread, so that what is told to a vnode waits there until this test waits.
#[tokio::test]
async fn items_that_come_while_a_staged_vnode_is_swapped_reach_the_new_instance() {
    let bed = Bed::with("guests/kv").await;
    for n in 0..1000 {
        bed.call("put", &[("key", format!("k{n:04}").into()), ("value", 1.into())]).await.unwrap();
    }
    let (from, to, transfer) = (PartitionId(3), PartitionId(5), TransferId(9));
    let (sink, mut events) = mpsc::unbounded_channel();
    let outgoing = Outgoing { kind: TransferKind::Ownership, target: "b@h".to_owned(), sink };
    assert!(bed.master.begin_outgoing(from, transfer, outgoing));
    let (mut items, mut after) = (Vec::new(), None);
    loop {
        assert!(bed.master.read_page(from, KV, 1, after));
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

    bed.master.stage(to, transfer);
    let staged = bed.master.staged_vnode(to, transfer, KV).unwrap();
    let tell = |items| {
        let (answer, taken) = oneshot::channel();
        staged.tell(Control::Items(items, answer));
        taken
    };
    let all = tell(items);
    let next = behaviour(&bed.engine, "guests/kv", 2).await;
    assert!(all.await.unwrap().unwrap().is_empty());
    // The swap begins, takes its first page over, and then the write of meanwhile comes.
    let (reports, taken) = tokio::join!(bed.master.swap(KV, &next), async { tell(update).await });
    assert!(taken.unwrap().unwrap().is_empty());
    let report = reports.iter().find(|(partition, _)| *partition == to).unwrap().1.as_ref().unwrap();
    assert!(report.items >= 1000, "{report:?}");

    let (reply, answer) = oneshot::channel();
    let args = cbor_map(&[("key", key.as_str().into())]);
    let request = Request { command: "get".to_owned(), key: Some(key.into_bytes()), args };
    let deadline = Instant::now() + Duration::from_secs(10);
    let id = RequestId([1; 16]);
    assert!(staged.try_command(Command { request, page: None, id, deadline, reply: Reply::Local(reply) }));
    let value: Value = ciborium::from_reader(&answer.await.unwrap().unwrap()[..]).unwrap();
    assert_eq!(value, Value::from(2), "the newer write, not what the swap had carried before it");
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
