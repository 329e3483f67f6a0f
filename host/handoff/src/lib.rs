//! Ownership handoff: the driver of `annulus_core::handoff`'s two state machines.
//!
//! [`Handoff`] watches the committed ring. For each partition that this node is to give away it
//! runs an outgoing task (a sender machine, its stream, its vnodes); for each that comes it
//! runs an incoming one (a receiver machine, its stage). The machines decide; here is only the
//! I/O. Only the holder proposes the flip (R1), so a partition whose holder is away stays
//! where it is.

mod holdings;
mod incoming;
mod limiter;
mod link;
mod outgoing;
mod progress;
mod rows;
mod seals;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::handoff::duties;
use annulus_core::handoff::message::{Begin, Refused, Start, ToReceiver, ToSender};
use annulus_core::handoff::pacing;
use annulus_core::handoff::sender::Task;
use annulus_core::ids::{BootId, NodeId, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::ring::Fate;
use annulus_core::role::{REPLICAS, Role};
use annulus_core::state::Command;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

pub use holdings::Held;
pub use rows::{TransferKindName, TransferRow};
pub use seals::{SealError, Seals};

use annulus_cluster::{Cluster, View};
use annulus_modules::Modules;
use annulus_transport::{BulkStream, Transport};
use annulus_vnode::Master;
use limiter::SendLimiter;
use progress::Progress;

/// Longest that the first message of an incoming stream may take.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// Longest that a flip which moves nothing may take to be agreed on before it is tried again.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);

/// This node's handoffs. Cheap to clone.
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
    /// How often in a row a partition's transfers were given up by this side, and why the last
    /// one was: the next one waits before it begins.
    broken: Mutex<HashMap<PartitionId, (u32, String)>>,
    outgoing: Mutex<BTreeMap<PartitionId, (TransferId, Progress)>>,
    /// By partition too: all transfers of one rebalance have the same id.
    incoming: Mutex<HashMap<(PartitionId, TransferId), incoming::Incoming>>,
}

impl Handoff {
    /// Handoffs of a node. `seals` are those that were durable when it stopped.
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
        let (broken, outgoing, incoming) = Default::default();
        let inner =
            Inner { cluster, transport, modules, master, seals, boot, limiter, broken, outgoing, incoming };
        Self { inner: Arc::new(inner) }
    }

    /// Follows the ring until the cluster's watch ends. Seals of transfers that ended while the
    /// node was away are taken off first.
    pub fn start(&self) {
        let this = self.clone();
        let mut changes = self.inner.cluster.watch();
        annulus_ground::spawn(async move {
            loop {
                let view = changes.borrow_and_update().clone();
                annulus_ground::point("handoff: begins what is pending").await;
                this.apply_limits(&view);
                this.clear_old_seals(&view);
                this.send_what_is_pending(&view);
                let changed = if this.flip_what_moves_nothing(&view).await {
                    changes.changed().await
                } else {
                    // Either there is news, or what failed is due again.
                    timeout(pacing::FIRST_PAUSE, changes.changed()).await.unwrap_or(Ok(()))
                };
                if changed.is_err() {
                    return;
                }
            }
        });
    }

    /// What operators have said of this node holds from now on.
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
        for duties::Sending { partition, transfer, version, taker } in
            duties::to_send(&view.state.ring, view.me)
        {
            let progress = Progress::default();
            let before = self.inner.broken.lock().get(&partition).cloned();
            {
                let mut outgoing = self.inner.outgoing.lock();
                // A task for a transfer of before ends by itself, by the same view.
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
            outgoing::spawn(self.clone(), task, taker, progress, before);
        }
    }

    /// A change behind the owner moves no item of a module with one replica: the owner, who
    /// alone may, flips it at once (R4). False if that is still to be done.
    async fn flip_what_moves_nothing(&self, view: &View) -> bool {
        let transfers = duties::to_flip(&view.state.ring, view.me);
        if transfers.is_empty() {
            return true;
        }
        let flip = Command::Flip { transfers };
        let flipped = self.inner.cluster.propose(flip, Instant::now() + PROPOSE_LIMIT).await;
        if let Err(error) = &flipped {
            tracing::warn!(%error, "replica sets that move nothing could not be flipped; tried again");
        }
        flipped.is_ok()
    }

    /// Takes in a stream that another node opened.
    pub fn serve(&self, stream: BulkStream) {
        let this = self.clone();
        annulus_ground::spawn(async move {
            if let Err(error) = this.greet(stream).await {
                tracing::warn!(error, "an incoming handoff could not begin");
            }
        });
    }

    async fn greet(&self, mut stream: BulkStream) -> Result<(), String> {
        let first = timeout(GREETING_LIMIT, link::receive::<ToReceiver>(&mut stream.recv)).await;
        let begin = match first.map_err(|_| "no first message came in time")?? {
            Some(ToReceiver::Begin(begin)) => begin,
            other => return Err(format!("the stream begins with {other:?}")),
        };
        let deadline = Instant::now() + GREETING_LIMIT;
        // Whoever is behind first learns what the sender knows (R2).
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

    /// Gives a stream to its task, unless there is no room for one that begins afresh. One that
    /// goes on is always taken: it may be sealed, and what it holds is here already.
    fn take_in(&self, view: &View, begin: Begin, stream: &mut Option<BulkStream>) -> Option<Refused> {
        let limits = view.state.handoff.of(view.me);
        let mut incoming = self.inner.incoming.lock();
        let name = (begin.partition, begin.transfer);
        if begin.start == Start::Fresh {
            let others = incoming.iter().filter(|(other, task)| **other != name && task.is_taking()).count();
            if limits.paused || others >= usize::from(limits.incoming) {
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

    /// What the committed log says of a transfer. `gives`: asked by its giver.
    fn fate(&self, view: &View, partition: PartitionId, transfer: TransferId, gives: bool) -> Fate {
        let partition = view.partition(partition);
        let has_given = gives && partition.role_of(view.me, REPLICAS) != Role::Owner;
        partition.fate_of(transfer, has_given)
    }

    /// Counts a transfer that this side gives up.
    fn note_broken(&self, partition: PartitionId, why: &str) {
        let mut broken = self.inner.broken.lock();
        let (times, last) = broken.entry(partition).or_default();
        *times += 1;
        why.clone_into(last);
    }

    fn name_of(&self, node: NodeId) -> String {
        self.inner.cluster.view().member(node).map_or_else(|| node.to_string(), |member| member.name.clone())
    }
}
