//! Ownership handoff: drives the state machines of `annulus_core::handoff`.
//!
//! [`Handoff`] watches the committed ring. Each partition that this node hands off has an outgoing task (a sender
//! machine with its stream and its vnodes); each partition that it receives has an incoming task (a receiver
//! machine with its stage). The machines decide, and this crate does the I/O. Only the owner proposes the flip (R1), so
//! a partition does not move while its owner is away.
//!
//! # Channels and tasks
//!
//! The channels of this crate are unbounded, because a full one would block a vnode, or a driver that delays others.
//! A comment at the creation of each channel names its bound. Most of the bounds come from the sender machine: it asks
//! for one page at a time, stops asking at `Limits::window_bytes` unacknowledged bytes, and has writes wait at
//! `Limits::backlog_bytes`.
//!
//! All tasks belong to the handoff: [`Handoff::stop`] aborts and awaits them. Those of a transfer end earlier: within
//! the deadline of a call, or when their driver drops its end of a channel.

mod incoming;
mod limiter;
mod link;
mod outgoing;
mod progress;
mod rows;
mod seals;
mod sizes;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::handoff::duties;
use annulus_core::handoff::message::{Begin, Refused, Start, ToReceiver, ToSender};
use annulus_core::handoff::pacing;
use annulus_core::handoff::sender::Task;
use annulus_core::ids::{BootId, NodeId, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::ring::{Fate, Partition};
use annulus_core::role::{REPLICAS, Role};
use annulus_core::state::Command;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

pub use rows::{TransferKindName, TransferRow};
pub use seals::{SealError, Seals};
pub use sizes::PartitionSize;

use annulus_cluster::{Cluster, View};
use annulus_ground::Tasks;
use annulus_modules::Modules;
use annulus_transport::{BulkStream, Transport};
use annulus_vnode::Master;
use limiter::SendLimiter;
use progress::Progress;

/// The time limit for the first message of an incoming stream.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// The time limit of a proposal. A proposal that fails is repeated.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);

/// The handoffs of one node. Cheap to clone.
#[derive(Clone)]
pub struct Handoff {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    transport: Transport,
    modules: Modules,
    master: Master,
    seals: Seals,
    boot: BootId,
    limiter: SendLimiter,
    /// The number of consecutive transfers that this node has abandoned, by partition, with the last reason. The next
    /// transfer starts after a pause.
    given_up: Mutex<HashMap<PartitionId, (u32, String)>>,
    outgoing: Mutex<BTreeMap<PartitionId, (TransferId, Progress)>>,
    /// The incoming transfers, by partition and id: all transfers of one rebalance have the same id.
    incoming: Mutex<HashMap<(PartitionId, TransferId), incoming::Incoming>>,
    tasks: Tasks,
}

impl Handoff {
    /// Create the handoffs of a node that has found `seals` on its disk.
    pub fn new(
        cluster: Cluster,
        transport: Transport,
        modules: Modules,
        master: Master,
        seals: Seals,
        boot: BootId,
    ) -> Self {
        let view = cluster.view();
        let limiter = SendLimiter::new(view.state.handoff.of(view.me));
        let (given_up, outgoing, incoming, tasks) = Default::default();
        let inner = Inner {
            cluster,
            transport,
            modules,
            master,
            seals,
            boot,
            limiter,
            given_up,
            outgoing,
            incoming,
            tasks,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Follow the ring until [`Handoff::stop`]. The first step removes the seals of transfers that ended while the node
    /// was away.
    pub fn start(&self) {
        let this = self.clone();
        let mut changes = self.inner.cluster.watch();
        self.inner.tasks.spawn(async move {
            loop {
                let view = changes.borrow_and_update().clone();
                annulus_ground::point("handoff: begins what is pending").await;
                this.apply_limits(&view);
                this.clear_old_seals(&view);
                this.send_what_is_pending(&view);
                let changed = if this.flip_what_moves_nothing(&view).await {
                    changes.changed().await
                } else {
                    // A failed flip is proposed again after a pause, or when the ring changes.
                    timeout(pacing::FIRST_PAUSE, changes.changed()).await.unwrap_or(Ok(()))
                };
                if changed.is_err() {
                    return;
                }
            }
        });
    }

    /// Stop all handoffs. Transfers resume or start again with this node's next start; sealed partitions stay sealed.
    pub fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.inner.tasks.stop())
    }

    /// Apply the limits that operators have set for this node.
    fn apply_limits(&self, view: &View) {
        self.inner.limiter.set(view.state.handoff.of(view.me));
    }

    fn clear_old_seals(&self, view: &View) {
        for (partition, transfer) in self.inner.seals.all() {
            let running = self.inner.outgoing.lock().get(&partition).is_some_and(|(id, _)| *id == transfer);
            if duties::is_over(&view.state.ring, partition, transfer) && !running {
                self.inner.cluster.keep_view();
                self.inner.seals.remove(partition, transfer);
            }
        }
    }

    fn send_what_is_pending(&self, view: &View) {
        for duties::Sending { partition, transfer, version, successor } in
            duties::to_send(&view.state.ring, view.me, |partition| view.state.has_arrived(partition))
        {
            let progress = Progress::default();
            let before = self.inner.given_up.lock().get(&partition).cloned();
            {
                let mut outgoing = self.inner.outgoing.lock();
                // An entry of an earlier transfer may be replaced: its task ends when it sees this view.
                if outgoing.get(&partition).is_some_and(|(running, _)| *running == transfer) {
                    continue;
                }
                outgoing.insert(partition, (transfer, progress.clone()));
            }
            let task = Task {
                transfer,
                partition,
                version,
                boot: self.inner.boot,
                modules: outgoing::releases(view),
                sealed: self.inner.seals.is_sealed(partition, transfer),
            };
            outgoing::spawn(self.clone(), task, successor, progress, before);
        }
    }

    /// Flip the pending changes of replicas other than the owner, which move no items of a module with one replica. The
    /// owner, as the only node that may, flips them at once (R4). Return false if the proposal failed.
    async fn flip_what_moves_nothing(&self, view: &View) -> bool {
        let is_ready = |partition: &Partition| view.state.has_arrived(partition);
        let transfers = duties::to_flip(&view.state.ring, view.me, is_ready);
        if transfers.is_empty() {
            return true;
        }
        let flip = Command::Flip { transfers };
        let flipped = self.inner.cluster.propose(flip, Instant::now() + PROPOSE_LIMIT).await;
        if let Err(error) = &flipped {
            tracing::warn!(%error, "cannot flip replica sets that move no items; will try again");
        }
        flipped.is_ok()
    }

    /// Receive a stream that another node has opened.
    pub fn serve(&self, stream: BulkStream) {
        let this = self.clone();
        self.inner.tasks.spawn(async move {
            if let Err(error) = this.greet(stream).await {
                tracing::warn!(error, "an incoming handoff could not start");
            }
        });
    }

    async fn greet(&self, mut stream: BulkStream) -> Result<(), String> {
        let first = timeout(GREETING_LIMIT, link::receive::<ToReceiver>(&mut stream.recv)).await;
        let begin = match first.map_err(|_| "no first message came in time")?? {
            Some(ToReceiver::Begin(begin)) => begin,
            other => return Err(format!("the first message of the stream is {other:?}")),
        };
        let deadline = Instant::now() + GREETING_LIMIT;
        // A node that is behind first applies the log up to the sender's index (R2).
        let view = self
            .inner
            .cluster
            .wait_applied(begin.applied, deadline)
            .await
            .map_err(|error| error.to_string())?;
        self.inner.master.wait_applied(view.index()).await;
        let mine = duties::takes(&view.state.ring, view.me, begin.partition, begin.transfer);
        annulus_ground::point("handoff: takes a stream in").await;
        let mut stream = Some(stream);
        let reason = if mine { self.take_in(&view, begin, &mut stream) } else { Some(Refused::NotPending) };
        let (Some(reason), Some(mut stream)) = (reason, stream) else { return Ok(()) };
        link::send(&mut stream.send, &ToSender::Refuse { reason }).await?;
        stream.send.finish().await.map_err(|error| error.to_string())
    }

    /// Pass a stream to its task. A stream of a fresh transfer is refused while the node receives the maximum number of
    /// transfers. A stream that resumes a transfer is always accepted: its partition may be sealed, and its items are
    /// already here. Return the reason of a refusal.
    fn take_in(&self, view: &View, begin: Begin, stream: &mut Option<BulkStream>) -> Option<Refused> {
        let limits = view.state.handoff.of(view.me);
        let mut incoming = self.inner.incoming.lock();
        let name = (begin.partition, begin.transfer);
        if begin.start == Start::Fresh {
            let others = incoming.iter().filter(|(other, task)| **other != name && task.is_taking()).count();
            if !limits.admits(others) {
                return Some(Refused::Busy);
            }
        }
        let spawned = || incoming::spawn(self.clone(), begin.partition, begin.transfer);
        let task = incoming.entry(name).or_insert_with(spawned);
        if let Some(stream) = stream.take() {
            task.give(incoming::Greeted { begin, stream });
        }
        None
    }

    /// Return the fate of a transfer by the committed log. `gives` is true if the sender of the transfer asks.
    fn fate(&self, view: &View, partition: PartitionId, transfer: TransferId, gives: bool) -> Fate {
        let partition = view.partition(partition);
        let has_given = gives && partition.role_of(view.me, REPLICAS) != Role::Owner;
        partition.fate_of(transfer, has_given)
    }

    /// Count a transfer that this node abandons.
    fn note_given_up(&self, partition: PartitionId, why: &str) {
        let mut given_up = self.inner.given_up.lock();
        let (times, last) = given_up.entry(partition).or_default();
        *times += 1;
        why.clone_into(last);
    }

    fn name_of(&self, node: NodeId) -> String {
        self.inner.cluster.view().member(node).map_or_else(|| node.to_string(), |member| member.name.clone())
    }
}
