//! Tests of the end of a vnode, with a guest in plain Rust whose items are in host storage.
#![allow(clippy::unwrap_used)]

use annulus_core::description::CommandInfo;
use annulus_core::ids::RequestId;
use annulus_core::item::{Item, ItemAddr, Version};
use annulus_core::request::Request;
use annulus_wasm::Answer;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::run::{Surroundings, start};
use super::*;
use crate::coverage_limit::CoverageLimiter;
use crate::mailbox::{Reply, VnodeHandle};
use crate::native_kv::native_kv;
use crate::runtime::{CommandResult, GuestCall, InstanceConfig, Program, Runtime};

/// A program whose guests write an item when they terminate: the reason, under the key `end`.
struct Farewells;

struct Farewell;

impl Program for Farewells {
    fn start<'a>(&'a self, _: InstanceConfig<'a>) -> GuestCall<'a, Box<dyn Runtime>> {
        GuestCall::done(Box::new(Farewell) as Box<dyn Runtime>)
    }
}

impl Runtime for Farewell {
    fn command<'a>(
        &'a mut self,
        _: &'a CommandInfo,
        _: (u64, u64),
        request: &'a Request,
    ) -> GuestCall<'a, CommandResult<Vec<u8>>> {
        let key = request.key.clone().unwrap_or_default().to_vec();
        let item = Item { key, sort: Vec::new(), value: request.args.to_vec(), deleted: false };
        GuestCall::done(Ok(Answer { value: Vec::new(), writes: vec![item], doom: None }))
    }

    fn keeps_items(&self) -> bool {
        false
    }

    fn terminate<'a>(&'a mut self, reason: &'a str) -> GuestCall<'a, Vec<Item>> {
        let value = reason.as_bytes().to_vec();
        GuestCall::done(vec![Item { key: b"end".to_vec(), sort: Vec::new(), value, deleted: false }])
    }
}

struct NoSource;

impl ModuleSource for NoSource {
    fn release(&self, _: ModuleUid) -> Option<Arc<Release>> {
        None
    }
}

fn vnode(items: &Items) -> VnodeHandle {
    let module = ModuleUid(1);
    let surroundings = Surroundings {
        guests: tokio::runtime::Handle::current(),
        modules: Arc::new(NoSource),
        incidents: Arc::default(),
        permits: CoverageLimiter::new(1).queue(module),
    };
    let described = (*native_kv().description).clone();
    let release = Release::native("farewells".into(), described, Arc::new(Farewells));
    start(surroundings, module, Partition { id: 3, ring_size: 8 }, Arc::new(release), items.clone(), true)
}

async fn put(vnode: &VnodeHandle, key: &'static str, value: &'static str) {
    let (reply, answer) = oneshot::channel();
    assert!(vnode.try_command(Command {
        request: Request {
            command: "put".into(),
            key: Some(Bytes::from_static(key.as_bytes())),
            args: Bytes::from_static(value.as_bytes()),
        },
        page: None,
        id: RequestId([0; 16]),
        deadline: Instant::now() + Duration::from_secs(60),
        reply: Reply::Local(reply),
    }));
    answer.await.unwrap().unwrap();
}

/// Return the values of the keys `k` and `end` after the end of a vnode.
async fn end(delete: bool) -> [Option<Vec<u8>>; 2] {
    let items = Items::memory();
    let vnode = vnode(&items);
    put(&vnode, "k", "v").await;
    let (done, ended) = oneshot::channel();
    let error = RequestError::not_applied(ErrorCode::ShuttingDown, "the node stops");
    assert!(vnode.tell(Control::End { error, delete, done }));
    ended.await.unwrap();
    let value = async |key: &str| {
        let addr = ItemAddr { key: key.into(), sort: Vec::new() };
        items.get(&addr).await.unwrap().map(|Version { value, .. }| value)
    };
    [value("k").await, value("end").await]
}

#[tokio::test]
async fn the_last_writes_of_a_vnode_that_stops_are_in_its_store_when_it_has_ended() {
    assert_eq!(end(false).await, [Some(b"v".to_vec()), Some(b"stopped".to_vec())]);
}

#[tokio::test]
async fn the_end_of_a_vnode_whose_partition_has_moved_leaves_its_store_to_the_master() {
    assert_eq!(end(true).await, [Some(b"v".to_vec()), None]);
}
