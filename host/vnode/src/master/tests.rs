//! Tests of the master with late messages: transfers that are over, older states, recoveries. The vnodes run the
//! baseline.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_core::contract::TransferKind;
use annulus_core::ids::RequestId;
use annulus_core::keyspace::RingSize;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::Request;
use annulus_core::ring::{Partition as RingPartition, Transfer};
use bytes::Bytes;
use ciborium::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::handoff::{IncompleteStage, Reading};
use super::*;
use crate::mailbox::Reply;
use crate::native_kv::native_kv;
use crate::outgoing::{Outgoing, StreamEvent};
use crate::slot::StageId;

const ME: NodeId = NodeId(1);
const HERE: PartitionId = PartitionId(3);
const MODULE: ModuleUid = ModuleUid(20);

struct Native(Arc<Release>);

impl ModuleSource for Native {
    fn release(&self, _: ModuleUid) -> Option<Arc<Release>> {
        Some(self.0.clone())
    }
}

/// Return a ring that this node has owned since log index 5.
fn ring() -> RingTable {
    let size = RingSize::try_from(16).unwrap();
    let partitions = size.partitions().map(|_| RingPartition::held_by(vec![ME], 5)).collect();
    RingTable { size, epoch: 5, partitions }
}

fn master() -> Master {
    let modules = Arc::new(Native(Arc::new(native_kv())));
    let guests = tokio::runtime::Handle::current();
    let config = MasterConfig { me: ME, guests, workers: 1, modules, stores: Stores::none() };
    let master = Master::new(config, &ring(), &[]);
    master.apply(&ring(), &BTreeMap::new(), 5, Lineage::default());
    master
}

/// Run a read on the module's vnode of [`HERE`].
async fn get(master: &Master) -> Result<Bytes, RequestError> {
    answer(say(master, "get", &[("key", "k")])).await
}

async fn answer(answer: oneshot::Receiver<Result<Bytes, RequestError>>) -> Result<Bytes, RequestError> {
    timeout(Duration::from_secs(60), answer).await.unwrap().unwrap()
}

fn say(
    master: &Master,
    command: &str,
    args: &[(&str, &str)],
) -> oneshot::Receiver<Result<Bytes, RequestError>> {
    say_until(Instant::now() + Duration::from_secs(60), master, command, args)
}

fn say_until(
    deadline: Instant,
    master: &Master,
    command: &str,
    args: &[(&str, &str)],
) -> oneshot::Receiver<Result<Bytes, RequestError>> {
    let named = args.iter().map(|(name, value)| (Value::from(*name), Value::from(*value))).collect();
    let mut args = Vec::new();
    ciborium::into_writer(&Value::Map(named), &mut args).unwrap();
    let (reply, answer) = oneshot::channel();
    let command = Command {
        request: Request { command: command.into(), key: Some(Bytes::from_static(b"k")), args: args.into() },
        page: None,
        id: RequestId([0; 16]),
        deadline,
        reply: Reply::Local(reply),
    };
    assert!(matches!(master.deliver(MODULE, HERE, 5, command), Delivery::Taken));
    answer
}

fn outgoing() -> (Outgoing, mpsc::UnboundedReceiver<StreamEvent>) {
    let (sink, events) = mpsc::unbounded_channel();
    let congested = tokio::sync::watch::channel(false).1;
    (Outgoing { kind: TransferKind::Ownership, target: "b@127.0.0.1".to_owned(), sink, congested }, events)
}

#[tokio::test]
async fn an_older_state_ends_no_vnode_of_a_module_that_was_deployed_after_it() {
    let master = master();
    get(&master).await.unwrap();
    // A state older than the module's deploy, applied late.
    master.apply(&ring(), &BTreeMap::new(), MODULE.0 - 1, Lineage::default());
    assert_eq!(master.vnodes(HERE).len(), 1);
    // A newer state without the module undeploys it.
    master.apply(&ring(), &BTreeMap::new(), MODULE.0 + 1, Lineage::default());
    assert_eq!(master.vnodes(HERE).len(), 0);
}

#[tokio::test]
async fn a_command_after_an_undeploy_starts_no_empty_vnode() {
    let master = master();
    get(&master).await.unwrap();
    // The source of releases, which follows the log in a task of its own, still has the module.
    master.apply(&ring(), &BTreeMap::new(), MODULE.0 + 1, Lineage::default());
    assert_eq!(get(&master).await.unwrap_err().code, ErrorCode::UnknownModule);
    assert_eq!(master.vnodes(HERE).len(), 0);
    // Deployed again, it is another module.
    let again = ModuleUid(MODULE.0 + 2);
    master.apply(&ring(), &BTreeMap::from([(again, 1)]), again.0, Lineage::default());
    assert_eq!(get(&master).await.unwrap_err().code, ErrorCode::UnknownModule);
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
    assert_eq!(master.seal(HERE, old, 1), None);
    assert!(get(&master).await.is_ok(), "it serves: nothing was sealed");
    assert!(events.try_recv().is_err(), "nothing came into the new transfer's stream");

    assert_eq!(master.read_page(HERE, new, ModuleUid(21), 1, None), Reading::NoItems);
    assert_eq!(master.read_page(HERE, new, MODULE, 1, None), Reading::Coming);
    let event = timeout(Duration::from_secs(60), events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, StreamEvent::Page { module: MODULE, attempt: 1, .. }), "{event:?}");
    assert_eq!(master.seal(HERE, new, 1), Some(vec![MODULE]));
    // The driver of a transfer that is over reads nothing either.
    master.end_outgoing(HERE, new, false);
    assert_eq!(master.read_page(HERE, new, MODULE, 1, None), Reading::Replaced);
}

#[tokio::test]
async fn a_stage_whose_vnode_trapped_is_incomplete() {
    let stage = StageId { partition: HERE, transfer: TransferId(30), generation: 1 };
    let master = master();
    assert_eq!(master.staging_complete(stage).await, Err(IncompleteStage::Gone));
    master.stage(stage);
    let vnode = master.staged_vnode(stage, MODULE).unwrap();
    assert_eq!(master.staging_complete(stage).await, Ok(()));
    // Count a trap as the actor does, which then continues with an empty instance.
    vnode.gauge.traps.fetch_add(1, Ordering::Relaxed);
    assert_eq!(master.staging_complete(stage).await, Err(IncompleteStage::Trapped(MODULE)));
    // The next stage of the transfer starts empty.
    let next = StageId { generation: 2, ..stage };
    master.stage(next);
    assert_eq!(master.staging_complete(stage).await, Err(IncompleteStage::Gone));
    master.staged_vnode(next, MODULE).unwrap();
    assert_eq!(master.staging_complete(next).await, Ok(()));
}

#[tokio::test]
async fn a_transfer_that_was_replaced_does_not_take_the_stage_of_the_next() {
    let master = master();
    let stage = |index| StageId { partition: HERE, transfer: TransferId(index), generation: 1 };
    let (old, new) = (stage(30), stage(31));
    let pending = |index| {
        let mut ring = ring();
        let target = vec![ME];
        ring.partitions[usize::from(HERE.0)].pending = Some(Transfer::new(TransferId(index), target));
        master.apply(&ring, &BTreeMap::from([(MODULE, 1)]), index, Lineage::default());
    };
    pending(30);
    master.stage(old);
    pending(31);
    master.stage(new);
    assert!(master.staged_vnode(new, MODULE).is_some());
    // The task of the old transfer does not know yet that its transfer is over.
    master.stage(StageId { generation: 2, ..old });
    assert!(master.staged_vnode(new, MODULE).is_some());
    assert_eq!(master.staging_complete(new).await, Ok(()));
}

#[tokio::test]
async fn a_recovery_that_gives_a_partition_to_another_node_deletes_nothing_here() {
    let other = NodeId(2);
    let master = master();
    answer(say(&master, "put", &[("key", "k"), ("value", "v")])).await.unwrap();
    let lineage = Lineage { number: 1, id: 7 };
    let index = lineage.first_index();
    let mut recovered = ring();
    for partition in &mut recovered.partitions {
        partition.version = index;
    }
    recovered.partitions[usize::from(HERE.0)].replicas = vec![other];
    assert_eq!(master.apply(&recovered, &BTreeMap::from([(MODULE, 1)]), index, lineage), [HERE]);
    let refused = get(&master).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StaleRing);
    let kept = master.set_aside();
    let (ping, here) = oneshot::channel();
    assert!(matches!(&kept[..], [vnode] if vnode.partition == HERE && vnode.tell(Control::Ping(ping))));
    timeout(Duration::from_secs(60), here).await.unwrap().unwrap();
    assert!(master.incidents().iter().any(|incident| incident.kind == "possible-loss"));
    // A flip in the recovered lineage is an ordinary one: no further items are set aside.
    let mut flipped = recovered.clone();
    flipped.partitions[0] = RingPartition::held_by(vec![other], index + 1);
    assert_eq!(master.apply(&flipped, &BTreeMap::from([(MODULE, 1)]), index + 1, lineage), []);
    assert_eq!(master.set_aside().len(), 1);
    // The state of a rival recovery does not include the vnodes that were set aside before.
    let rival = Lineage { number: 1, id: 9 };
    let index = rival.first_index();
    for partition in &mut flipped.partitions {
        partition.version = index;
    }
    assert_eq!(master.apply(&flipped, &BTreeMap::from([(MODULE, 1)]), index, rival), [HERE]);
    // An undeploy ends vnodes that were set aside, too.
    master.apply(&flipped, &BTreeMap::new(), index + 1, rival);
    assert_eq!(master.set_aside().len(), 0);
}

#[tokio::test]
async fn a_recovery_to_a_state_from_before_a_deploy_deletes_no_items_of_that_module() {
    let master = master();
    master.apply(&ring(), &BTreeMap::from([(MODULE, 1)]), MODULE.0, Lineage::default());
    answer(say(&master, "put", &[("key", "k"), ("value", "v")])).await.unwrap();
    let lineage = Lineage { number: 1, id: 7 };
    let index = lineage.first_index();
    assert_eq!(master.apply(&ring(), &BTreeMap::new(), index, lineage), [HERE]);
    assert_eq!((master.vnodes(HERE).len(), master.set_aside().len()), (0, 1));
    master.apply(&ring(), &BTreeMap::new(), index + 1, lineage);
    assert_eq!(master.set_aside().len(), 1, "nobody has undeployed it");
}

#[tokio::test]
async fn commands_wait_while_the_receiver_of_their_writes_is_behind() {
    let master = master();
    get(&master).await.unwrap();
    let (mut stream, _events) = outgoing();
    let (behind, congested) = tokio::sync::watch::channel(true);
    stream.congested = congested;
    assert!(master.begin_outgoing(HERE, TransferId(30), stream));
    let mut waiting = say(&master, "get", &[("key", "k")]);
    // Control messages are still handled.
    let (ping, here) = oneshot::channel();
    master.vnodes(HERE)[0].tell(Control::Ping(ping));
    timeout(Duration::from_secs(60), here).await.unwrap().unwrap();
    assert!(waiting.try_recv().is_err(), "it waits");
    behind.send_replace(false);
    answer(waiting).await.unwrap();
    // A handoff that has ended delays no commands.
    behind.send_replace(true);
    drop(behind);
    get(&master).await.unwrap();
}

/// Assert that a property holds, and that it does not with the mutant.
fn shows<F: Future<Output = bool>>(mutant: Mutant, holds: impl Fn() -> F) {
    let holds = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(holds())
    };
    assert!(holds());
    assert!(!mutants::during(Some(mutant), holds), "{mutant} is not seen");
}

fn stage(transfer: u64, generation: u64) -> StageId {
    StageId { partition: HERE, transfer: TransferId(transfer), generation }
}

#[test]
fn a_command_after_its_deadline_is_not_started() {
    shows(Mutant::DeadlineNotChecked, async || {
        let master = master();
        let late = say_until(Instant::now(), &master, "put", &[("key", "k"), ("value", "v")]);
        let refused = answer(late).await.is_err_and(|error| error.code == ErrorCode::DeadlineExceeded);
        let got: Value = ciborium::from_reader(&*get(&master).await.unwrap()).unwrap();
        refused && got == Value::Null
    });
}

#[test]
fn a_fault_that_lets_an_older_state_end_newer_vnodes_is_detected() {
    shows(Mutant::EndWhatIsNewer, async || {
        let master = master();
        get(&master).await.unwrap();
        master.apply(&ring(), &BTreeMap::new(), MODULE.0 - 1, Lineage::default());
        master.vnodes(HERE).len() == 1
    });
}

#[test]
fn a_fault_that_lets_two_drivers_share_a_stream_is_detected() {
    shows(Mutant::ReadForAnotherTransfer, async || {
        let master = master();
        get(&master).await.unwrap();
        let ((first, _first_events), (second, _events)) = (outgoing(), outgoing());
        assert!(master.begin_outgoing(HERE, TransferId(30), first));
        assert!(master.begin_outgoing(HERE, TransferId(31), second));
        master.read_page(HERE, TransferId(30), MODULE, 1, None) == Reading::Replaced
            && master.seal(HERE, TransferId(30), 1).is_none()
    });
}

#[tokio::test]
async fn the_driver_of_a_transfer_that_is_over_does_not_take_the_stream_of_the_next() {
    let master = master();
    get(&master).await.unwrap();
    let mut ring = ring();
    let target = vec![NodeId(2)];
    ring.partitions[usize::from(HERE.0)].pending = Some(Transfer::new(TransferId(31), target));
    master.apply(&ring, &BTreeMap::from([(MODULE, 1)]), 31, Lineage::default());
    let ((next, mut events), (late, _late_events)) = (outgoing(), outgoing());
    assert!(master.begin_outgoing(HERE, TransferId(31), next));
    assert!(!master.begin_outgoing(HERE, TransferId(30), late));
    assert_eq!(master.read_page(HERE, TransferId(31), MODULE, 1, None), Reading::Coming);
    let page = timeout(Duration::from_secs(60), events.recv()).await.unwrap().unwrap();
    assert!(matches!(page, StreamEvent::Page { attempt: 1, .. }), "it comes into the stream that asked");
}

#[test]
fn a_fault_that_lets_a_transfer_that_is_over_take_a_stage_is_detected() {
    shows(Mutant::StageWhatIsOver, async || {
        let master = master();
        let mut ring = ring();
        let target = vec![ME];
        ring.partitions[usize::from(HERE.0)].pending = Some(Transfer::new(TransferId(31), target));
        master.apply(&ring, &BTreeMap::from([(MODULE, 1)]), 31, Lineage::default());
        master.stage(stage(31, 1));
        master.stage(stage(30, 2));
        master.staged_vnode(stage(31, 1), MODULE).is_some()
    });
}

#[test]
fn a_fault_that_fills_the_next_stage_is_detected() {
    shows(Mutant::FillTheNextStage, async || {
        let master = master();
        master.stage(stage(30, 1));
        master.stage(stage(30, 2));
        master.staged_vnode(stage(30, 1), MODULE).is_none()
    });
}

#[test]
fn a_fault_that_promotes_a_trapped_stage_is_detected() {
    shows(Mutant::PromoteWhatTrapped, async || {
        let master = master();
        master.stage(stage(30, 1));
        let vnode = master.staged_vnode(stage(30, 1), MODULE).unwrap();
        vnode.gauge.traps.fetch_add(1, Ordering::Relaxed);
        master.staging_complete(stage(30, 1)).await.is_err()
    });
}
