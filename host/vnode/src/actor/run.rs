//! The loop of an actor: control messages first, then pages of coverage commands, commands, and background work.

use std::collections::VecDeque;
use std::sync::Arc;

use annulus_core::contract::Partition;
use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, RequestError};
use tokio::sync::{mpsc, oneshot};

use super::Actor;
use crate::control::Control;
use crate::coverage_limit::{CoveragePermit, CoverageQueue, PendingPermit};
use crate::incidents::Incidents;
use crate::mailbox::{Command, Gauge, MAILBOX_COMMANDS, VnodeHandle};
use crate::memory::Compaction;
use crate::moves::Sweep;
use crate::outgoing::Outgoing;
use crate::parked::Parked;
use crate::release::Release;
use crate::source::ModuleSource;
use annulus_storage::{Items, Writer};

/// Number of commands between two steps of background work while both are waiting. A step is a page of about
/// 100 µs. So a command waits for at most one step, and the background work gets its share.
const COMMANDS_PER_STEP: u32 = 8;

/// The surroundings of an actor, the same for all actors of a module.
pub(crate) struct Surroundings {
    /// The runtime of the guests.
    pub(crate) guests: tokio::runtime::Handle,
    pub(crate) modules: Arc<dyn ModuleSource>,
    pub(crate) incidents: Arc<Incidents>,
    pub(crate) permits: CoverageQueue,
}

/// Start a vnode with its items. `complete` is false for one of several replicas that does not know what it should have.
///
/// Its task is owned through the returned handle: it ends with [`Control::End`], or when all handles are dropped.
pub(crate) fn start(
    surroundings: Surroundings,
    module: ModuleUid,
    partition: Partition,
    release: Arc<Release>,
    items: Items,
    complete: bool,
) -> VnodeHandle {
    let (commands, commands_rx) = mpsc::channel(MAILBOX_COMMANDS);
    // The senders bound this channel: see `VnodeHandle::control`.
    let (control, control_rx) = mpsc::unbounded_channel();
    let gauge = Arc::new(Gauge::default());
    let id = PartitionId(u16::try_from(partition.id).unwrap_or(u16::MAX));
    let handle = VnodeHandle { module, partition: id, commands, control, gauge: gauge.clone() };
    let Surroundings { guests, modules, incidents, permits } = surroundings;
    let actor = Actor {
        module,
        partition,
        release,
        guest: None,
        items,
        is_open: false,
        parked: Arc::default(),
        writer: Writer { actor: annulus_ground::random(), dots: 0 },
        commands: commands_rx,
        control: control_rx,
        sealed: false,
        aside: None,
        outgoing: None,
        late: None,
        swap: None,
        sweep: Sweep::default(),
        since_step: 0,
        traps_in_a_row: 0,
        back_off_until: None,
        last_exit: None,
        gauge,
        incidents,
        modules,
        pages: VecDeque::new(),
        permits,
        permit: None,
        compaction: Compaction::default(),
        has_items: false,
        complete,
        written: Vec::new(),
    };
    annulus_ground::spawn_on(&guests, actor.run());
    handle
}

impl Actor {
    async fn run(mut self) {
        loop {
            if self.step_is_due() {
                self.since_step = 0;
                self.step().await;
                // Yield, so that control messages and commands can arrive between any two steps.
                tokio::task::yield_now().await;
            }
            if self.late.is_some() && self.swap.is_none() {
                self.start_late().await;
            }
            tokio::select! {
                biased;
                control = self.control.recv() => match control {
                    Some(Control::End { error, delete, done }) => return self.end(error, delete, done).await,
                    Some(control) => self.control(control).await,
                    // The master has dropped the vnode: no handle exists.
                    None => return,
                },
                permit = next_permit(&self.parked, &self.items, &mut self.permit),
                    if !self.sealed && self.permit.is_some() =>
                {
                    self.since_step += 1;
                    self.permit = None;
                    self.run_page(permit).await;
                }
                () = relieved(&mut self.outgoing), if self.is_congested() => {}
                Some(command) = next_command(&self.parked, &self.items, &mut self.commands),
                    if !self.sealed && !self.is_congested() =>
                {
                    match (&self.aside, &command.page) {
                        (Some(error), _) => {
                            self.gauge.taken(&command);
                            command.reply.send(Err(error.clone()));
                        }
                        (None, Some(_)) => self.queue_page(command),
                        (None, None) => {
                            self.gauge.taken(&command);
                            self.since_step += 1;
                            self.command(command).await;
                        }
                    }
                }
                () = std::future::ready(()), if self.step_is_wanted() => self.since_step = COMMANDS_PER_STEP,
            }
        }
    }

    /// Return true if there is background work.
    fn step_is_wanted(&self) -> bool {
        self.swap.is_some() || (self.sweep.running && self.outgoing.is_none())
    }

    /// Return true if the next step of background work runs before the next command.
    fn step_is_due(&self) -> bool {
        self.step_is_wanted()
            && (self.since_step >= COMMANDS_PER_STEP
                || self.commands.is_empty()
                || self.sealed
                || self.is_congested())
    }

    /// Do a step of background work.
    async fn step(&mut self) {
        if self.swap.is_some() {
            self.step_swap().await;
        } else {
            self.step_sweep().await;
        }
    }

    fn is_congested(&self) -> bool {
        self.outgoing.as_ref().is_some_and(Outgoing::is_congested)
    }

    async fn control(&mut self, control: Control) {
        match control {
            Control::StartOutgoing(outgoing) => self.start_outgoing(outgoing).await,
            Control::ReadPage { attempt, after } => self.read_page(attempt, after).await,
            Control::EndOutgoing { finished } => self.end_outgoing(finished).await,
            Control::Seal(round) => {
                self.sealed = !mutants::on(Mutant::ServeWhileSealed);
                // A sealed vnode must not hold a permit.
                self.permit = None;
                self.confirm_seal(round).await;
            }
            Control::Ping(answer) => drop(answer.send(())),
            Control::Unseal => {
                self.sealed = false;
                self.permit = (!self.pages.is_empty()).then(|| self.permits.enter());
            }
            Control::SetAside(error) => {
                (self.sealed, self.permit) = (false, None);
                self.refuse_pages(&error);
                self.aside = Some(error);
            }
            Control::Items(items, answer) => {
                let for_swap = self.swap.is_some().then(|| items.clone());
                let taken = self.take(items).await;
                // The fold of a swap may be past their keys already.
                if let (Ok(_), Some(items)) = (&taken, for_swap) {
                    self.forward_to_swap(items).await;
                }
                let _ = answer.send(taken);
            }
            Control::Merge(items, answer) => self.merge(items, answer).await,
            Control::TellKey { key, with_items, answer } => self.tell_key(&key, with_items, answer).await,
            Control::TellPage { after, limit, of_any, answer } => {
                self.tell_page(after, limit, of_any, answer).await;
            }
            Control::Complete => self.complete = true,
            Control::Count(answer) => drop(answer.send(self.count().await)),
            Control::Measure { after, answer } => {
                let page = self.measure_page(after).await;
                let _ = answer.send(page);
            }
            Control::Swap(release, answer) => self.start_swap(release, answer).await,
            Control::End { .. } => unreachable!("the loop ends the vnode itself"),
        }
    }

    /// Queue a page of a coverage command for a permit. Other commands run while it waits.
    fn queue_page(&mut self, command: Command) {
        if self.pages.len() >= MAILBOX_COMMANDS {
            self.gauge.taken(&command);
            let message = "too many coverage commands wait for this vnode; try again later";
            return command.reply.send(Err(RequestError::not_applied(ErrorCode::Overloaded, message)));
        }
        self.pages.push_back(command);
        self.permit.get_or_insert_with(|| self.permits.enter());
    }

    async fn run_page(&mut self, permit: Option<CoveragePermit>) {
        if let Some(command) = self.pages.pop_front() {
            self.gauge.taken(&command);
            self.command(command).await;
        }
        drop(permit);
        if !self.pages.is_empty() {
            self.permit = Some(self.permits.enter());
        }
    }

    fn refuse_pages(&mut self, error: &RequestError) {
        for command in std::mem::take(&mut self.pages) {
            self.gauge.taken(&command);
            command.reply.send(Err(error.clone()));
        }
    }

    /// End the vnode: answer all waiting commands, then end the guest.
    async fn end(mut self, error: RequestError, delete: bool, done: oneshot::Sender<()>) {
        self.commands.close();
        self.permit = None;
        self.refuse_pages(&error);
        while let Some(command) = self.commands.recv().await {
            self.gauge.taken(&command);
            command.reply.send(Err(error.clone()));
        }
        self.end_outgoing(delete).await;
        if let Some(mut guest) = self.guest.take() {
            if let Err(error) = guest.end(delete).await {
                tracing::warn!(module = %self.release.name, partition = self.partition.id, %error, "a vnode did not end in order");
            }
            self.writer.dots = self.writer.dots.max(guest.dots());
        }
        // The master drops the items of a partition that has moved. Those in memory end with their last handle.
        if !delete {
            self.close_store().await;
        }
        if mutants::on(Mutant::KeepItems) {
            std::mem::forget(self.items.clone());
        }
        let _ = done.send(());
    }
}

/// Return when the receiver of a handoff may have caught up.
async fn relieved(outgoing: &mut Option<Outgoing>) {
    if let Some(outgoing) = outgoing {
        // The wait fails if the handoff has ended.
        let _ = outgoing.congested.changed().await;
    }
}

/// Wait for the next command. While much waits for the disk none is taken, and callers get `overloaded` once the mailbox
/// is full. Every vnode may exceed the limits of what waits by one command.
async fn next_command(
    parked: &Parked,
    items: &Items,
    commands: &mut mpsc::Receiver<Command>,
) -> Option<Command> {
    parked.room(items).await;
    commands.recv().await
}

/// Wait for a permit to run a page. Without a position in the queue, wait forever.
async fn next_permit(
    parked: &Parked,
    items: &Items,
    pending: &mut Option<PendingPermit>,
) -> Option<CoveragePermit> {
    match pending {
        Some(pending) => {
            parked.room(items).await;
            pending.await
        }
        None => std::future::pending().await,
    }
}
