//! One transfer that this node sends: the sender machine, its stream and its vnodes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::handoff::message::{ModuleRelease, ToReceiver};
use annulus_core::handoff::sender::{Effect, Event, Limits, Sender, Task};
use annulus_core::ids::{ModuleUid, NodeId};
use annulus_core::item::Item;
use annulus_core::ring::Fate;
use annulus_core::state::{Command, Outcome};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::rows::Progress;
use super::{Handoff, PROPOSE_LIMIT, link};
use crate::cluster::{ProposeError, View};
use crate::transport::kind;
use crate::vnode::{Outgoing, StreamEvent};
use crate::wasm::TransferKind;

/// Before the first further try after a failure; doubles up to [`LONGEST_PAUSE`].
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Between tries after many failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest that opening a stream may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A leader must have been heard from this lately for a seal (R1): a node that is cut off
/// would otherwise stop serving for a flip that cannot come.
const LEADER_WITHIN: Duration = Duration::from_secs(1);
/// Most bytes of items in one message; a frame holds them with their CBOR around them.
const MESSAGE_BYTES: usize = 512 << 10;

/// The modules that there are, as a transfer names them.
pub(super) fn releases(view: &View) -> Vec<ModuleRelease> {
    let release = |module: &annulus_core::state::Module| ModuleRelease {
        uid: module.uid,
        version: module.current.version,
    };
    view.state.modules.values().map(release).collect()
}

/// Runs a transfer to its end, by the log.
pub(super) fn spawn(handoff: Handoff, task: Task, taker: NodeId, progress: Progress) {
    tokio::spawn(async move {
        let (partition, transfer) = (task.partition, task.transfer);
        Driver::new(handoff.clone(), task, taker, progress).run().await;
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
    /// Vnodes that have been told to seal and have not said that they are.
    sealing: Option<HashSet<ModuleUid>>,
    modules: Vec<ModuleRelease>,
    failures: u32,
    turn: Option<OwnedSemaphorePermit>,
    /// What was sent is not what is any more: nothing is done but to wait for the cancel.
    broken: bool,
}

impl Driver {
    fn new(handoff: Handoff, task: Task, taker: NodeId, progress: Progress) -> Self {
        let (later, events) = mpsc::unbounded_channel();
        let (to_vnodes, vnodes) = mpsc::unbounded_channel();
        let view = handoff.inner.cluster.view();
        let machine = Sender::new(task.clone(), view.index(), Limits::default());
        let target = handoff.name_of(taker);
        let modules = task.modules.clone();
        let (link, sealing, failures, turn, broken) = (None, None, 0, None, false);
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
            sealing,
            modules,
            failures,
            turn,
            broken,
        }
    }

    async fn run(mut self) {
        let (partition, transfer) = (self.task.partition, self.task.transfer);
        let mut changes = self.handoff.inner.cluster.watch();
        // What changed since the task was made counts too.
        changes.mark_changed();
        // A turn is waited for unless the partition is sealed already: then every moment counts.
        let turns = self.handoff.inner.turns.clone();
        let mut turn = std::pin::pin!(async move { turns.acquire_owned().await.ok() });
        let mut started = false;
        if self.task.sealed {
            started = self.start().await;
        }
        while !self.machine.is_finished() {
            self.progress.set(&self.machine);
            let event = tokio::select! {
                biased;
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let view = changes.borrow_and_update().clone();
                    self.follow(&view).await;
                    continue;
                }
                Some(event) = self.vnodes.recv() => match self.of_vnode(event).await {
                    Some(event) => event,
                    None => continue,
                },
                Some(event) = self.events.recv() => event,
                permit = &mut turn, if !started => {
                    self.turn = permit;
                    started = true;
                    if !self.start().await {
                        return;
                    }
                    continue;
                }
            };
            if !self.broken {
                self.feed(event).await;
            }
        }
        self.progress.set(&self.machine);
        tracing::debug!(partition = partition.0, %transfer, to = self.target, state = ?self.machine.state(), "a handoff ended");
    }

    /// Begins to listen to the vnodes, then to send. False if this node does not hold the
    /// partition any more.
    async fn start(&mut self) -> bool {
        let view = self.handoff.inner.cluster.view();
        self.handoff.inner.master.wait_applied(view.index()).await;
        let outgoing = Outgoing {
            kind: TransferKind::Ownership,
            target: self.target.clone(),
            sink: self.to_vnodes.clone(),
        };
        let holds =
            self.handoff.inner.master.begin_outgoing(self.task.partition, self.task.transfer, outgoing);
        if holds {
            self.feed(Event::Start).await;
        }
        holds
    }

    async fn feed(&mut self, event: Event) {
        if matches!(event, Event::Received(..)) {
            self.failures = 0;
        }
        for effect in self.machine.handle(event) {
            self.carry_out(effect).await;
        }
    }

    /// What the committed log says, of the transfer and of the modules.
    async fn follow(&mut self, view: &View) {
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
                let items = page.items.into_iter().map(item).collect();
                Some(Event::Page { attempt, module, items, next: page.next })
            }
            StreamEvent::Page { attempt, page: Err(why), .. } => Some(Event::PageFailed { attempt, why }),
            StreamEvent::Forward { module, items } => {
                let mut items: Vec<Item> = items.into_iter().map(item).collect();
                // One write may have more items than a frame takes.
                while let Some(cut) = cut(&items) {
                    let rest = items.split_off(cut);
                    self.feed(Event::Forward(module, std::mem::replace(&mut items, rest))).await;
                }
                Some(Event::Forward(module, items))
            }
            StreamEvent::Sealed { module } => {
                let sealing = self.sealing.as_mut()?;
                sealing.remove(&module);
                self.sealed_if_all().await
            }
            StreamEvent::Broken { module, reason } => {
                tracing::warn!(partition = self.task.partition.0, %module, reason, "a handoff is given up and starts again");
                self.progress.fail(&reason);
                // Only another transfer begins anew; a module that goes on breaking its handoffs
                // is asked less and less often.
                self.broken = true;
                let pause = self.handoff.note_broken(self.task.partition);
                let cancel = Command::Cancel { partition: self.task.partition, transfer: self.task.transfer };
                let cluster = self.handoff.inner.cluster.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
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
        if !self.sealing.as_ref()?.is_empty() {
            return None;
        }
        self.sealing = None;
        let (seals, partition, transfer) =
            (self.handoff.inner.seals.clone(), self.task.partition, self.task.transfer);
        // Syncs the disk, which must not hold up the network's threads.
        let sealed = tokio::task::spawn_blocking(move || seals.put(partition, transfer)).await;
        Some(if sealed.is_ok() { Event::Sealed } else { Event::SealRefused })
    }

    async fn carry_out(&mut self, effect: Effect) {
        let inner = &self.handoff.inner;
        match effect {
            Effect::Connect(number) => self.connect(number),
            Effect::Send(number, message) => {
                if let Some((open, link)) = &self.link
                    && *open == number
                {
                    let _ = link.send(message);
                }
            }
            Effect::Disconnect(number) => {
                self.link.take_if(|(open, _)| *open == number);
            }
            Effect::ReadPage { attempt, module, after } => {
                if !inner.master.read_page(self.task.partition, module, attempt, after) {
                    // No vnode of it runs here, so it has no items; one that starts from here
                    // on tells of all that it writes.
                    let page = Event::Page { attempt, module, items: Vec::new(), next: None };
                    let _ = self.later.send(page);
                }
            }
            Effect::Seal => {
                let heard = inner.cluster.heard_from_leader_within(LEADER_WITHIN);
                let told =
                    if heard { inner.master.seal(self.task.partition, self.task.transfer) } else { None };
                match told {
                    Some(vnodes) => {
                        self.sealing = Some(vnodes.into_iter().collect());
                        if let Some(sealed) = self.sealed_if_all().await {
                            let _ = self.later.send(sealed);
                        }
                    }
                    None => drop(self.later.send(Event::SealRefused)),
                }
            }
            Effect::ProposeFlip => {
                self.propose(Command::Flip { transfers: vec![(self.task.partition, self.task.transfer)] });
            }
            Effect::ProposeCancel => {
                self.propose(Command::Cancel {
                    partition: self.task.partition,
                    transfer: self.task.transfer,
                });
            }
            Effect::Retry => {
                self.failures += 1;
                let pause = pause_after(self.failures);
                let later = self.later.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    let _ = later.send(Event::Retry);
                });
            }
            Effect::Finish(fate) => {
                self.turn = None;
                if fate == Fate::Flipped {
                    self.handoff.inner.broken.lock().remove(&self.task.partition);
                }
                let (partition, transfer) = (self.task.partition, self.task.transfer);
                inner.master.end_outgoing(partition, transfer, fate == Fate::Flipped);
                if fate == Fate::Cancelled {
                    inner.master.unseal(partition, transfer);
                }
                inner.seals.remove(partition, transfer);
            }
        }
    }

    fn connect(&mut self, number: u64) {
        let (opened, later) = (self.later.clone(), self.later.clone());
        let Some(peer) = self.handoff.inner.cluster.view().peer(self.taker) else {
            return drop(opened.send(Event::Disconnected(number)));
        };
        // The machine's messages wait in the channel until the stream is there.
        let (sender, mut waiting) = mpsc::unbounded_channel();
        self.link = Some((number, sender));
        let transport = self.handoff.inner.transport.clone();
        let progress = self.progress.clone();
        tokio::spawn(async move {
            let deadline = Instant::now() + CONNECT_LIMIT;
            let stream = match transport.open_bulk(&peer, kind::BULK_HANDOFF, Bytes::new(), deadline).await {
                Ok(stream) => stream,
                Err(error) => {
                    progress.fail(&error.to_string());
                    return drop(opened.send(Event::Disconnected(number)));
                }
            };
            let _ = opened.send(Event::Connected(number));
            let received = move |message| drop(opened.send(Event::Received(number, message)));
            let ended = move || drop(later.send(Event::Disconnected(number)));
            let link = link::run(stream, received, ended);
            while let Some(message) = waiting.recv().await {
                if link.send(message).is_err() {
                    return;
                }
            }
        });
    }

    /// Proposes; success is learned from the log.
    fn propose(&self, command: Command) {
        let (cluster, later, progress) =
            (self.handoff.inner.cluster.clone(), self.later.clone(), self.progress.clone());
        tokio::spawn(async move {
            let failed = match cluster.propose(command, Instant::now() + PROPOSE_LIMIT).await {
                Ok((_, Outcome::Flipped(done))) if done.is_empty() => Some("the flip was refused".to_owned()),
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(reason) = failed {
                progress.fail(&reason);
                let _ = later.send(Event::NotProposed);
            }
        });
    }
}

/// Pause after so many failures in a row.
pub(super) fn pause_after(failures: u32) -> Duration {
    (FIRST_PAUSE * 2u32.pow(failures.clamp(1, 10) - 1)).min(LONGEST_PAUSE)
}

/// Where to cut items so that the first part fits a message; `None` if all of them do.
fn cut(items: &[Item]) -> Option<usize> {
    let mut bytes = 0;
    let fits = items.iter().take_while(|item| {
        bytes += item.len();
        bytes <= MESSAGE_BYTES
    });
    let fit = fits.count().max(1);
    (fit < items.len()).then_some(fit)
}

/// An item as the core has it.
fn item(item: crate::wasm::Item) -> Item {
    Item { key: item.key, sort: item.sort, value: item.value, deleted: item.deleted }
}
