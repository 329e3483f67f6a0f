//! One transfer that this node sends: the sender machine, its stream and its vnodes.

mod carry;
mod pace;
mod seal;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::contract::TransferKind;
use annulus_core::handoff::message::{ModuleRelease, ToReceiver, ToSender};
use annulus_core::handoff::pacing::{self, Pacing};
use annulus_core::handoff::sender::{Event, Limits, Sender, Task};
use annulus_core::ids::{ModuleUid, NodeId};
use annulus_core::item::Item;
use tokio::sync::{mpsc, watch};

use super::Handoff;
use super::limiter::Permit;
use super::progress::Progress;
use annulus_cluster::View;
use annulus_vnode::{Outgoing, StreamEvent};
use seal::Seal;

/// The time limit for opening a stream.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A partition is sealed only if this node had contact with a leader within this time (R1). A node that is cut off
/// would otherwise stop serving for a flip that cannot be committed.
const LEADER_WITHIN: Duration = Duration::from_secs(1);

/// Return the deployed modules with one replica, with their current releases. Successors build the others themselves.
pub(super) fn releases(view: &View) -> Vec<ModuleRelease> {
    let release = |module: &annulus_core::state::Module| ModuleRelease {
        uid: module.uid,
        version: module.current.version,
    };
    view.state.modules.values().filter(|module| module.n == 1).map(release).collect()
}

/// Run a transfer until the log ends it. `before` is the number of consecutive transfers of the partition that this
/// node has abandoned, with the last reason.
pub(super) fn spawn(
    handoff: Handoff,
    task: Task,
    successor: NodeId,
    progress: Progress,
    before: Option<(u32, String)>,
) {
    let owner = handoff.clone();
    owner.inner.tasks.spawn(async move {
        let (partition, transfer) = (task.partition, task.transfer);
        let mut driver = Driver::new(handoff.clone(), task, successor, progress);
        if let Some((times, why)) = before {
            driver.progress.go_on_from(times, &why);
            driver.pacing = Pacing::after_failures(times, handoff.inner.limiter.now());
        }
        driver.run().await;
        let mut outgoing = handoff.inner.outgoing.lock();
        if outgoing.get(&partition).is_some_and(|(running, _)| *running == transfer) {
            outgoing.remove(&partition);
        }
    });
}

struct Driver {
    handoff: Handoff,
    task: Task,
    successor: NodeId,
    target: String,
    machine: Sender,
    progress: Progress,
    /// Answers of streams and proposals. Bounded by the machine: one answer per stream, proposal and page, and one
    /// acknowledgement per message sent, of which at most `Limits::backlog_bytes` are unacknowledged.
    events: mpsc::UnboundedReceiver<Event>,
    later: mpsc::UnboundedSender<Event>,
    /// Pages and writes of the vnodes, in commit order. Bounded: one page is read at a time, and vnodes have their
    /// commands wait while `congested` is true.
    vnodes: mpsc::UnboundedReceiver<StreamEvent>,
    to_vnodes: mpsc::UnboundedSender<StreamEvent>,
    link: Option<(u64, mpsc::UnboundedSender<Arc<ToReceiver>>)>,
    seal: Seal,
    /// True while the receiver is so far behind that writes wait.
    congested: watch::Sender<bool>,
    modules: Vec<ModuleRelease>,
    /// The number of items of each sealed vnode whose items the host keeps.
    counts: BTreeMap<ModuleUid, u64>,
    pacing: Pacing,
    /// The permit that `pacing` wants.
    permit: Option<Permit>,
    /// True if the transfer is counted in `Inner::given_up`.
    given_up: bool,
}

impl Driver {
    fn new(handoff: Handoff, task: Task, successor: NodeId, progress: Progress) -> Self {
        let (later, events) = mpsc::unbounded_channel();
        let (to_vnodes, vnodes) = mpsc::unbounded_channel();
        let view = handoff.inner.cluster.view();
        let machine = Sender::new(task.clone(), view.index(), Limits::default());
        let target = handoff.name_of(successor);
        let modules = task.modules.clone();
        let (link, counts) = (None, BTreeMap::new());
        Self {
            handoff,
            task,
            successor,
            target,
            machine,
            progress,
            events,
            later,
            vnodes,
            to_vnodes,
            link,
            seal: Seal::default(),
            congested: watch::Sender::new(false),
            modules,
            counts,
            pacing: Pacing::default(),
            permit: None,
            given_up: false,
        }
    }

    async fn run(mut self) {
        let (partition, transfer) = (self.task.partition, self.task.transfer);
        let mut changes = self.handoff.inner.cluster.watch();
        // The view may have changed since the task was created.
        changes.mark_changed();
        // A sealed partition does not wait for a permit: requests are waiting for it.
        if self.task.sealed && !self.start().await {
            return;
        }
        while !self.machine.is_finished() {
            if !self.go_on().await {
                return;
            }
            self.show();
            let wake_at = self.pacing.wake_at().map(|due| self.handoff.inner.limiter.instant(due));
            let event = tokio::select! {
                biased;
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let view = changes.borrow_and_update().clone();
                    annulus_ground::point("handoff: what is sent follows the ring").await;
                    self.follow(&view).await;
                    continue;
                }
                Some(event) = self.vnodes.recv() => match self.of_vnode(event).await {
                    Some(event) => event,
                    None => continue,
                },
                Some(event) = self.events.recv() => event,
                turn = self.seal.changed() => {
                    self.go_on_sealing(turn).await;
                    continue;
                }
                () = pace::due(&mut self.permit, wake_at) => continue,
            };
            self.feed(event).await;
        }
        self.show();
        tracing::debug!(partition = partition.0, %transfer, to = self.target, state = ?self.machine.state(), "a handoff ended");
    }

    /// Connect to the vnodes, then start the machine. Return false if this node no longer owns the partition, or if the
    /// transfer is over.
    async fn start(&mut self) -> bool {
        let view = self.handoff.inner.cluster.view();
        self.handoff.inner.master.wait_applied(view.index()).await;
        annulus_ground::point("handoff: listens to the vnodes").await;
        let outgoing = Outgoing {
            kind: TransferKind::Ownership,
            target: self.target.clone(),
            sink: self.to_vnodes.clone(),
            congested: self.congested.subscribe(),
        };
        let holds =
            self.handoff.inner.master.begin_outgoing(self.task.partition, self.task.transfer, outgoing);
        if holds {
            self.pace(pacing::Event::Started);
            self.count();
            self.feed(Event::Start).await;
        }
        holds
    }

    /// Count the items to be sent, for `annulus transfers`.
    fn count(&self) {
        // The task below ends with the count, or with the vnodes.
        let (master, progress, partition) =
            (self.handoff.inner.master.clone(), self.progress.clone(), self.task.partition);
        self.handoff.inner.tasks.spawn(async move { progress.set_totals(master.count(partition).await) });
    }

    async fn feed(&mut self, event: Event) {
        if matches!(event, Event::Received(_, ToSender::Ack { .. } | ToSender::Ended { .. })) {
            self.pace(pacing::Event::Progress);
        }
        let before = self.machine.state();
        let effects = self.machine.handle(event);
        // The end of a stream lets the receiver begin another one. A status must not show both as running.
        if self.machine.state() != before {
            self.show();
        }
        for effect in effects {
            self.carry_out(effect).await;
        }
        let congested = self.machine.is_congested();
        self.congested.send_if_modified(|was| std::mem::replace(was, congested) != congested);
    }

    /// Report a new view to the machine: limits, modules and the fate of the transfer.
    async fn follow(&mut self, view: &View) {
        self.handoff.apply_limits(view);
        let limits = &view.state.handoff;
        let (here, there) = (limits.of(view.me).paused, limits.of(self.successor).paused);
        self.pace(pacing::Event::Paused { here, there });
        let now = releases(view);
        for module in &now {
            if !self.modules.contains(module) {
                self.feed(Event::Deployed(*module, view.index())).await;
            }
        }
        for gone in self.modules.clone() {
            if now.iter().all(|module| module.uid != gone.uid) {
                self.feed(Event::Undeployed(gone.uid)).await;
            }
        }
        self.modules = now;
        let fate = self.handoff.fate(view, self.task.partition, self.task.transfer, true);
        self.feed(Event::Fate(fate)).await;
    }

    async fn of_vnode(&mut self, event: StreamEvent) -> Option<Event> {
        match event {
            StreamEvent::Page { module, attempt, page: Ok(page) } => {
                self.handoff.inner.limiter.settle_page(bytes(&page.items));
                Some(Event::Page { attempt, module, items: page.items, next: page.next })
            }
            StreamEvent::Page { module, attempt, page: Err(why) } => {
                self.handoff.inner.limiter.settle_page(0);
                Some(Event::PageFailed { attempt, module, why })
            }
            StreamEvent::Forward { module, items } => {
                self.handoff.inner.limiter.spend(bytes(&items));
                Some(Event::Forward(module, items))
            }
            StreamEvent::Sealed { module, round, stored } => {
                if !self.seal.heard(module, round) {
                    return None;
                }
                self.counts.extend(stored.map(|count| (module, count)));
                self.sealed_if_all().await
            }
            StreamEvent::Broken { module, reason } => {
                tracing::warn!(partition = self.task.partition.0, %module, reason, "a handoff was abandoned and will start again");
                annulus_ground::point("handoff: a broken one is given up").await;
                Some(Event::SourceBroken(reason))
            }
        }
    }

    async fn sealed_if_all(&mut self) -> Option<Event> {
        if !self.seal.take_if_all() {
            return None;
        }
        let (seals, partition, transfer) =
            (self.handoff.inner.seals.clone(), self.task.partition, self.task.transfer);
        annulus_ground::point("handoff: the vnodes are silent, and no mark says so").await;
        // Storing the seal syncs the disk, which must not block the network's threads.
        let sealed = annulus_ground::aside(async move { seals.put(partition, transfer).await }).await;
        let counts = std::mem::take(&mut self.counts);
        Some(if sealed.is_ok() { Event::Sealed { counts } } else { Event::SealRefused })
    }
}

fn bytes(items: &[Item]) -> u64 {
    items.iter().map(|item| item.len() as u64).sum()
}
