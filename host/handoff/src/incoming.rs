//! One transfer that this node receives: the receiver machine, its streams and its stage.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_core::handoff::Tallies;
use annulus_core::handoff::message::{Begin, ModuleRelease, Refused, ToReceiver, ToSender};
use annulus_core::handoff::receiver::{Effect, Event, Found, Receiver, StreamId};
use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::item::Item;
use annulus_core::keyspace::PartitionId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Handoff, link};
use annulus_transport::BulkStream;
use annulus_vnode::{Control, StageId, Taken};

/// The time that a stream waits until this node can run its modules. Then the stream is refused, and the sender tries
/// again later, so that it does not hold its permit while a compiler runs.
const MODULE_GRACE: Duration = Duration::from_millis(250);
/// The same limit for a module that is deployed while a stream is open. It is longer, because a refusal would cost the
/// whole stream, and because every member that could be reached had the component before the deploy.
const LATER_MODULE_GRACE: Duration = Duration::from_secs(10);
/// The time limit for applying the log entries that the sender has applied.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// A stream whose first message has been read.
pub(super) struct Greeted {
    pub(super) begin: Begin,
    pub(super) stream: BulkStream,
}

/// Run a transfer until the log ends it. The returned handle accepts the streams.
pub(super) fn spawn(handoff: Handoff, partition: PartitionId, transfer: TransferId) -> Incoming {
    // Bounded by the sender, which opens one stream at a time.
    let (greeted, streams) = mpsc::unbounded_channel();
    let taking = Arc::new(AtomicBool::new(true));
    let incoming = Incoming { greeted, taking: taking.clone() };
    // Bounded by the sender, which has at most `Limits::backlog_bytes` unacknowledged, and by the stage's answers, one
    // per step.
    let (later, events) = mpsc::unbounded_channel();
    let found = match handoff.inner.master.has_found_stage(partition, transfer) {
        true => Found::Complete,
        false => Found::Nothing,
    };
    let machine = Receiver::new(handoff.inner.boot, found);
    let owner = handoff.clone();
    owner.inner.tasks.spawn(async move {
        let driver = Driver {
            handoff: handoff.clone(),
            partition,
            transfer,
            machine,
            events,
            later,
            links: HashMap::new(),
            streams_so_far: 0,
            stage: None,
            taking,
        };
        driver.run(streams).await;
        handoff.inner.incoming.lock().remove(&(partition, transfer));
    });
    incoming
}

/// A handle to the task of one transfer.
pub(super) struct Incoming {
    greeted: mpsc::UnboundedSender<Greeted>,
    taking: Arc<AtomicBool>,
}

impl Incoming {
    /// Return true if the transfer has a stream that is not complete, which counts against the limit of incoming
    /// transfers.
    pub(super) fn is_taking(&self) -> bool {
        self.taking.load(Ordering::Relaxed)
    }

    /// Pass a stream to the task. A task that has just ended drops the stream, and the sender tries again.
    pub(super) fn give(&self, greeted: Greeted) {
        self.taking.store(true, Ordering::Relaxed);
        let _ = self.greeted.send(greeted);
    }
}

struct Driver {
    handoff: Handoff,
    partition: PartitionId,
    transfer: TransferId,
    machine: Receiver,
    events: mpsc::UnboundedReceiver<Event>,
    later: mpsc::UnboundedSender<Event>,
    links: HashMap<StreamId, mpsc::UnboundedSender<Arc<ToSender>>>,
    streams_so_far: StreamId,
    /// The open stage: its generation, and the steps of the task that fills it. Bounded like the events: each step
    /// belongs to a message that is not acknowledged yet.
    stage: Option<(u64, mpsc::UnboundedSender<Step>)>,
    taking: Arc<AtomicBool>,
}

impl Driver {
    async fn run(mut self, mut streams: mpsc::UnboundedReceiver<Greeted>) {
        let mut changes = self.handoff.inner.cluster.watch();
        // The view may have changed since the task was created.
        changes.mark_changed();
        while !self.machine.is_finished() {
            let event = tokio::select! {
                biased;
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let view = changes.borrow_and_update().clone();
                    annulus_ground::point("handoff: what comes in follows the ring").await;
                    Event::Fate(self.handoff.fate(&view, self.partition, self.transfer, false))
                }
                Some(greeted) = streams.recv() => self.greet(greeted),
                Some(event) = self.events.recv() => event,
            };
            if let Event::Disconnected(stream) = &event {
                self.links.remove(stream);
            }
            for effect in self.machine.handle(event) {
                self.carry_out(effect).await;
            }
            self.taking.store(self.machine.is_taking(), Ordering::Relaxed);
        }
    }

    fn greet(&mut self, Greeted { begin, stream }: Greeted) -> Event {
        self.streams_so_far += 1;
        let id = self.streams_so_far;
        let (came, gone) = (self.later.clone(), self.later.clone());
        let received = move |message| drop(came.send(Event::Received(id, message)));
        let ended = move |_| drop(gone.send(Event::Disconnected(id)));
        self.links.insert(id, link::run(&self.handoff.inner.tasks, stream, received, ended));
        Event::Received(id, ToReceiver::Begin(begin))
    }

    async fn carry_out(&mut self, effect: Effect) {
        let master = &self.handoff.inner.master;
        match effect {
            Effect::Open { generation, modules, applied } => {
                annulus_ground::point("handoff: opens a stage").await;
                self.step(generation, Step::Open { modules, applied });
            }
            Effect::Stage { generation, seq, module, items } => {
                self.step(generation, Step::Stage { seq, module, items });
            }
            // The machine asks for these only with `Receiver::keeping`, which is not used here: a stage in memory ends
            // with its process, and within one process the numbers of the messages show which ones are missing.
            Effect::Adopt { generation, .. }
            | Effect::Compare { generation, .. }
            | Effect::Replace { generation, .. } => {
                let reason = Refused::Stage("this node compares no stages".to_owned());
                let _ = self.later.send(Event::Failed { generation, reason });
            }
            Effect::Count { generation, modules } => self.step(generation, Step::Count { modules }),
            // This step waits for the opening of the stage, also without items: this node must not become the owner of
            // the partition before it can run the modules.
            Effect::Complete(generation) => self.step(generation, Step::Complete),
            Effect::Send(stream, message) => {
                if let Some(link) = self.links.get(&stream) {
                    let _ = link.send(Arc::new(message));
                }
            }
            Effect::Close(stream) => drop(self.links.remove(&stream)),
            Effect::Drop => {
                self.stage = None;
                master.unstage(self.partition, self.transfer);
            }
            // Nothing to do: the vnode master promotes the stage, in the order of the log.
            Effect::Promote { .. } => {}
        }
    }

    fn step(&mut self, generation: u64, step: Step) {
        if self.stage.as_ref().is_none_or(|(open, _)| *open != generation) {
            let stage = StageId { partition: self.partition, transfer: self.transfer, generation };
            self.handoff.inner.master.stage(stage);
            let (steps, todo) = mpsc::unbounded_channel();
            let filler = Filler { handoff: self.handoff.clone(), id: stage, later: self.later.clone() };
            // The task ends when the driver drops the stage, after its current step.
            self.handoff.inner.tasks.spawn(filler.run(todo));
            self.stage = Some((generation, steps));
        }
        if let Some((_, steps)) = &self.stage {
            let _ = steps.send(step);
        }
    }
}

/// One step of filling a stage.
enum Step {
    Open { modules: Vec<ModuleRelease>, applied: u64 },
    Stage { seq: u64, module: ModuleUid, items: Vec<Item> },
    Count { modules: Vec<ModuleUid> },
    Complete,
}

/// Fills one generation of a stage, in the order of the stream.
struct Filler {
    handoff: Handoff,
    id: StageId,
    later: mpsc::UnboundedSender<Event>,
}

impl Filler {
    /// Fill the stage until a step fails or the driver drops the stage.
    async fn run(self, mut todo: mpsc::UnboundedReceiver<Step>) {
        let generation = self.id.generation;
        let mut grace = MODULE_GRACE;
        while let Some(step) = todo.recv().await {
            let done = match step {
                Step::Open { modules, applied } => {
                    let grace = std::mem::replace(&mut grace, LATER_MODULE_GRACE);
                    ready(&self.handoff, &modules, applied, grace).await.map(|()| None)
                }
                Step::Stage { seq, module, items } => self
                    .stage(module, items)
                    .await
                    .map(|taken| Some(Event::Staged { generation, seq, taken })),
                Step::Count { modules } => {
                    let mut counts = BTreeMap::new();
                    for module in modules {
                        let count = self.handoff.inner.master.staged_count(self.id, module);
                        counts.extend(count.await.map(|count| (module, count)));
                    }
                    Ok(Some(Event::Counted { generation, counts }))
                }
                Step::Complete => match self.handoff.inner.master.staging_complete(self.id).await {
                    Ok(()) => Ok(Some(Event::Completed(generation))),
                    Err(why) => Err(Refused::Stage(why.to_string())),
                },
            };
            match done {
                Ok(event) => event.into_iter().for_each(|event| drop(self.later.send(event))),
                Err(reason) => return drop(self.later.send(Event::Failed { generation, reason })),
            }
        }
    }

    async fn stage(&self, module: ModuleUid, items: Vec<Item>) -> Result<Tallies, Refused> {
        if items.is_empty() {
            return Ok(Tallies::default());
        }
        let vnode = self.handoff.inner.master.staged_vnode(self.id, module);
        let vnode =
            vnode.ok_or_else(|| Refused::Stage("the stage or the module is not available".to_owned()))?;
        annulus_ground::point("handoff: fills a stage").await;
        let (answer, taken) = oneshot::channel();
        vnode.tell(Control::Items(items, answer));
        let Taken { tally, rejections } = taken
            .await
            .map_err(|_| Refused::Stage("the vnode that takes the items ended".to_owned()))?
            .map_err(Refused::Stage)?;
        match rejections.first() {
            None => Ok(Tallies([(module, tally)].into())),
            Some(first) => Err(Refused::Stage(format!(
                "{} items were rejected; the first: {}",
                rejections.len(),
                first.reason
            ))),
        }
    }
}

/// Wait until this node has applied the log up to the sender's index and can run every module.
async fn ready(
    handoff: &Handoff,
    modules: &[ModuleRelease],
    applied: u64,
    grace: Duration,
) -> Result<(), Refused> {
    let late = |error: annulus_cluster::DeadlineExceeded| Refused::Stage(error.to_string());
    handoff.inner.cluster.wait_applied(applied, Instant::now() + LOG_LIMIT).await.map_err(late)?;
    let deadline = Instant::now() + grace;
    for module in modules {
        let loaded = handoff.inner.modules.await_loaded(module.uid, deadline).await;
        loaded.map_err(|why| Refused::Module { module: module.uid, why })?;
    }
    Ok(())
}
