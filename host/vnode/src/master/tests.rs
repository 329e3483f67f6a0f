//! What the master refuses to those who come late, with vnodes in native code.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use annulus_core::ids::RequestId;
use annulus_core::keyspace::RingSize;
use annulus_core::ring::Partition as RingPartition;
use annulus_wasm::{Request, TransferKind};
use bytes::Bytes;
use ciborium::Value;
use tokio::time::{Instant, timeout};

use super::super::mailbox::{Reply, StreamEvent};
use super::super::native::native_kv;
use super::*;

const ME: NodeId = NodeId(1);
const HERE: PartitionId = PartitionId(3);
const MODULE: ModuleUid = ModuleUid(20);

struct Native(Arc<Behaviour>);

impl ModuleSource for Native {
    fn behaviour(&self, _: ModuleUid) -> Option<Arc<Behaviour>> {
        Some(self.0.clone())
    }
}

/// All of it is this node's since log index 5.
fn ring() -> RingTable {
    let size = RingSize::try_from(16).unwrap();
    let partitions = size.partitions().map(|_| RingPartition::held_by(vec![ME], 5)).collect();
    RingTable { size, epoch: 5, partitions }
}

fn master() -> Master {
    let modules = Arc::new(Native(Arc::new(native_kv())));
    let config = MasterConfig { me: ME, guests: tokio::runtime::Handle::current(), modules };
    let master = Master::new(config, &ring(), &[]);
    master.apply(&ring(), &[], 5);
    master
}

/// Has the module's vnode of [`HERE`] answer something.
async fn get(master: &Master) -> Result<Bytes, RequestError> {
    let mut args = Vec::new();
    let named = Value::Map(vec![(Value::from("key"), Value::from("k"))]);
    ciborium::into_writer(&named, &mut args).unwrap();
    let (reply, answer) = oneshot::channel();
    let command = Command {
        request: Request { command: "get".into(), key: Some(b"k".to_vec()), args },
        page: None,
        id: RequestId([0; 16]),
        deadline: Instant::now() + Duration::from_secs(60),
        reply: Reply::Local(reply),
    };
    assert!(matches!(master.deliver(MODULE, HERE, 5, command), Delivery::Taken));
    timeout(Duration::from_secs(60), answer).await.unwrap().unwrap()
}

fn outgoing() -> (Outgoing, mpsc::UnboundedReceiver<StreamEvent>) {
    let (sink, events) = mpsc::unbounded_channel();
    (Outgoing { kind: TransferKind::Ownership, target: "b@127.0.0.1".to_owned(), sink }, events)
}

#[tokio::test]
async fn an_older_state_ends_no_vnode_of_a_module_that_was_deployed_after_it() {
    let master = master();
    get(&master).await.unwrap();
    // A state from before the module's deploy, applied late.
    master.apply(&ring(), &[], MODULE.0 - 1);
    assert_eq!(master.vnodes(HERE).len(), 1);
    // It was undeployed.
    master.apply(&ring(), &[], MODULE.0 + 1);
    assert_eq!(master.vnodes(HERE).len(), 0);
}

#[tokio::test]
async fn the_driver_of_a_replaced_transfer_reads_and_seals_nothing() {
    let (old, new) = (TransferId(30), TransferId(31));
    let master = master();
    get(&master).await.unwrap();
    let ((first, _first_events), (second, mut events)) = (outgoing(), outgoing());
    assert!(master.begin_outgoing(HERE, old, first));
    assert!(master.begin_outgoing(HERE, new, second));

    let after = Some(b"m".to_vec());
    assert_eq!(master.read_page(HERE, old, MODULE, 1, after), Reading::Replaced);
    assert_eq!(master.seal(HERE, old), None);
    assert!(get(&master).await.is_ok(), "it serves: nothing was sealed");
    assert!(events.try_recv().is_err(), "nothing came into the new transfer's stream");

    assert_eq!(master.read_page(HERE, new, ModuleUid(21), 1, None), Reading::NoItems);
    assert_eq!(master.read_page(HERE, new, MODULE, 1, None), Reading::Coming);
    let event = timeout(Duration::from_secs(60), events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, StreamEvent::Page { module: MODULE, attempt: 1, .. }), "{event:?}");
    assert_eq!(master.seal(HERE, new), Some(vec![MODULE]));
    // Over: it can do nothing any more either.
    master.end_outgoing(HERE, new, false);
    assert_eq!(master.read_page(HERE, new, MODULE, 1, None), Reading::Replaced);
}

#[tokio::test]
async fn a_stage_whose_vnode_trapped_is_not_all_that_came() {
    let stage = StageId { partition: HERE, transfer: TransferId(30), generation: 1 };
    let master = master();
    assert_eq!(master.staging_complete(stage), Err(IncompleteStage::Gone));
    master.stage(stage);
    let vnode = master.staged_vnode(stage, MODULE).unwrap();
    assert_eq!(master.staging_complete(stage), Ok(()));
    // As the actor counts it when it goes on with an empty instance.
    vnode.gauge.traps.fetch_add(1, Ordering::Relaxed);
    assert_eq!(master.staging_complete(stage), Err(IncompleteStage::Trapped(MODULE)));
    // The next stage of the transfer begins anew.
    let next = StageId { generation: 2, ..stage };
    master.stage(next);
    assert_eq!(master.staging_complete(stage), Err(IncompleteStage::Gone));
    master.staged_vnode(next, MODULE).unwrap();
    assert_eq!(master.staging_complete(next), Ok(()));
}
