//! One transfer that this node sends: the sender machine, its stream and its vnodes.

mod carry;
mod seal;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::contract::TransferKind;
use annulus_core::handoff::message::{ModuleRelease, ToReceiver, ToSender};
use annulus_core::handoff::sender::{Event, Limits, Sender, Task};
use annulus_core::ids::{ModuleUid, NodeId};
use annulus_core::item::Item;
use annulus_core::state::Command;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::progress::Progress;
use super::{Handoff, PROPOSE_LIMIT};
use annulus_cluster::{ProposeError, View};
use annulus_vnode::{Outgoing, StreamEvent};
use seal::Seal;
use waiting::Waiting;

/// Before the first further try after a failure; doubles up to [`LONGEST_PAUSE`].
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Between tries after many failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest that opening a stream may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A leader must have been heard from this lately for a seal (R1): a node that is cut off
/// would otherwise stop serving for a flip that cannot come.
const LEADER_WITHIN: Duration = Duration::from_secs(1);

/// The modules that there are, as a transfer names them.
pub(super) fn releases(view: &View) -> Vec<ModuleRelease> {
    let release = |module: &annulus_core::state::Module| ModuleRelease {
        uid: module.uid,
        version: module.current.version,
    };
    view.state.modules.values().map(release).collect()
}

/// Runs a transfer to its end, by the log.
/// `before`: how often in a row this node has given up a transfer of the partition, and why.
pub(super) fn spawn(
    handoff: Handoff,
    task: Task,
    taker: NodeId,
    progress: Progress,
    before: Option<(u32, String)>,
) {
    annulus_ground::spawn(async move {
        let (partition, transfer) = (task.partition, task.transfer);
        let mut driver = Driver::new(handoff.clone(), task, taker, progress);
        if let Some((times, why)) = before {
            driver.progress.go_on_from(times, &why);
            driver.waiting.begin_after(pause_after(times));
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
    taker: NodeId,
    target: String,
    machine: Sender,
    progress: Progress,
    events: mpsc::UnboundedReceiver<Event>,
    /// Where what comes later is told: streams, proposals, pauses.
    later: mpsc::UnboundedSender<Event>,
    vnodes: mpsc::UnboundedReceiver<StreamEvent>,
    to_vnodes: mpsc::UnboundedSender<StreamEvent>,
    link: Option<(u64, mpsc::UnboundedSender<Arc<ToReceiver>>)>,
    seal: Seal,
    /// Tells the vnodes that the receiver is behind.
    congested: watch::Sender<bool>,
    modules: Vec<ModuleRelease>,
    /// How many items the sealed vnodes have, where the host keeps them.
    counts: BTreeMap<ModuleUid, u64>,
    waiting: Waiting,
    /// What was sent is not what is any more: nothing is done but to wait for the cancel.
    broken: bool,
    /// It has been counted among those that are given up.
    cancels: bool,
}

impl Driver {
    fn new(handoff: Handoff, task: Task, taker: NodeId, progress: Progress) -> Self {
        let (later, events) = mpsc::unbounded_channel();
        let (to_vnodes, vnodes) = mpsc::unbounded_channel();
        let view = handoff.inner.cluster.view();
        let machine = Sender::new(task.clone(), view.index(), Limits::default());
        let target = handoff.name_of(taker);
        let modules = task.modules.clone();
        let (link, counts, broken) = (None, BTreeMap::new(), false);
        let waiting = Waiting::default();
        Self {
            handoff,
            task,
            taker,
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
            waiting,
            broken,
            cancels: false,
        }
    }

    async fn run(mut self) {
        let (partition, transfer) = (self.task.partition, self.task.transfer);
        let mut changes = self.handoff.inner.cluster.watch();
        // What changed since the task was made counts too.
        changes.mark_changed();
        // A turn is waited for unless the partition is sealed already: then every moment counts.
        if self.task.sealed && !self.start().await {
            return;
        }
        while !self.machine.is_finished() {
            if !self.go_on().await {
                return;
            }
            self.show();
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
                turn = self.seal.changed(), if !self.broken => {
                    self.go_on_sealing(turn).await;
                    continue;
                }
                () = self.waiting.changed() => continue,
            };
            if !self.broken {
                self.feed(event).await;
            }
        }
        self.show();
        tracing::debug!(partition = partition.0, %transfer, to = self.target, state = ?self.machine.state(), "a handoff ended");
    }

    /// Begins to listen to the vnodes, then to send. False if this node does not hold the
    /// partition any more, or the transfer is over.
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
            self.waiting.started = true;
            self.count();
            self.feed(Event::Start).await;
        }
        holds
    }

    /// Asks once how many items there are to be sent, for people to look at.
    fn count(&self) {
        let (master, progress, partition) =
            (self.handoff.inner.master.clone(), self.progress.clone(), self.task.partition);
        annulus_ground::spawn(async move { progress.set_totals(master.count(partition).await) });
    }

    async fn feed(&mut self, event: Event) {
        if matches!(event, Event::Received(_, ToSender::Ack { .. } | ToSender::Ended { .. })) {
            self.waiting.went_well();
        }
        for effect in self.machine.handle(event) {
            self.carry_out(effect).await;
        }
        let congested = self.machine.is_congested();
        self.congested.send_if_modified(|was| std::mem::replace(was, congested) != congested);
    }

    /// What the committed log says, of the transfer and of the modules.
    async fn follow(&mut self, view: &View) {
        self.handoff.apply_limits(view);
        let limits = &view.state.handoff;
        self.waiting.paused_here = limits.of(view.me).paused;
        self.waiting.paused_there = limits.of(self.taker).paused;
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
                self.handoff.inner.turns.settle_page(bytes(&page.items));
                Some(Event::Page { attempt, module, items: page.items, next: page.next })
            }
            StreamEvent::Page { module, attempt, page: Err(why) } => {
                self.handoff.inner.turns.settle_page(0);
                Some(Event::PageFailed { attempt, module, why })
            }
            StreamEvent::Forward { module, items } => {
                self.handoff.inner.turns.spend(bytes(&items));
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
                tracing::warn!(partition = self.task.partition.0, %module, reason, "a handoff is given up and starts again");
                self.progress.fail(&reason);
                // Only another transfer begins anew; a module that goes on breaking its handoffs
                // is asked less and less often.
                self.broken = true;
                self.handoff.note_broken(self.task.partition, &reason);
                self.waiting.give_up();
                let cancel = Command::Cancel { partition: self.task.partition, transfer: self.task.transfer };
                let cluster = self.handoff.inner.cluster.clone();
                annulus_ground::spawn(async move {
                    annulus_ground::point("handoff: a broken one is given up").await;
                    while let Err(error) =
                        cluster.propose(cancel.clone(), Instant::now() + PROPOSE_LIMIT).await
                    {
                        if matches!(error, ProposeError::Refused(_)) {
                            return;
                        }
                        tokio::time::sleep(LONGEST_PAUSE).await;
                    }
                });
                None
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
        // Syncs the disk, which must not hold up the network's threads.
        let sealed = annulus_ground::aside(async move { seals.put(partition, transfer).await }).await;
        let counts = std::mem::take(&mut self.counts);
        Some(if sealed.is_ok() { Event::Sealed { counts } } else { Event::SealRefused })
    }
}

/// Pause after so many failures in a row.
pub(super) fn pause_after(failures: u32) -> Duration {
    (FIRST_PAUSE * 2u32.pow(failures.clamp(1, 10) - 1)).min(LONGEST_PAUSE)
}

fn bytes(items: &[Item]) -> u64 {
    items.iter().map(|item| item.len() as u64).sum()
}
