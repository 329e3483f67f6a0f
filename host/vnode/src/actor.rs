//! One vnode: one mailbox, one guest instance, one thing at a time.
//!
//! The order of everything that happens to a vnode is the order in which this loop does it:
//! that is what makes "forwarded in commit order" (R15) and "sealed" (R1) true without locks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, RequestError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::background::{LateStart, SwapState, Sweep};
use super::guest::{Behaviour, Guest, Items};
use super::mailbox::{Command, Control, Gauge, MAILBOX_COMMANDS, Outgoing, StreamEvent, VnodeHandle};
use super::master::{MasterConfig, ModuleSource};
use super::room::Room;
use super::slot::Incidents;
use super::turns::{Place, Queue, Turn};
use annulus_wasm::{CommandInfo, GuestError, Partition};

/// Commands between two steps of background work while both are waiting: a step is a page of
/// some 100 µs, so a command waits behind at most one, and the work gets its share.
const COMMANDS_PER_STEP: u32 = 8;
/// Traps in a row after which a vnode waits before it makes a new instance.
const TRAPS_BEFORE_BACK_OFF: u32 = 5;
/// The first such wait; each further trap doubles it.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest such wait.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

pub(super) struct Actor {
    pub(super) module: ModuleUid,
    pub(super) partition: Partition,
    pub(super) behaviour: Arc<Behaviour>,
    pub(super) guest: Option<Guest>,
    pub(super) items: Items,
    /// Names this vnode's writes: random for each start, so no dot is given twice (R8).
    actor: u64,
    dots: u64,
    commands: mpsc::Receiver<Command>,
    control: mpsc::UnboundedReceiver<Control>,
    sealed: bool,
    /// It keeps its items and serves no more.
    aside: Option<RequestError>,
    pub(super) outgoing: Option<Outgoing>,
    /// A handoff that began within a swap, and is gone into once that is over.
    pub(super) late: Option<LateStart>,
    pub(super) swap: Option<SwapState>,
    pub(super) sweep: Sweep,
    since_step: u32,
    traps_in_a_row: u32,
    back_off_until: Option<Instant>,
    last_exit: Option<String>,
    gauge: Arc<Gauge>,
    incidents: Arc<Incidents>,
    modules: Arc<dyn ModuleSource>,
    /// Pages of commands that go everywhere, which wait for their turn.
    pages: VecDeque<Command>,
    turns: Queue,
    /// The place in that queue, while there are pages.
    turn: Option<Place>,
    pub(super) room: Room,
    /// The guest has been given something to keep since it was made.
    pub(super) has_items: bool,
}

/// Returns when the receiver of a handoff may have caught up.
async fn relieved(outgoing: &mut Option<Outgoing>) {
    if let Some(outgoing) = outgoing {
        // An error: the handoff is gone.
        let _ = outgoing.congested.changed().await;
    }
}

/// Starts a vnode where guests run.
pub(super) fn start(
    config: &MasterConfig,
    module: ModuleUid,
    partition: Partition,
    behaviour: Arc<Behaviour>,
    incidents: Arc<Incidents>,
    turns: Queue,
) -> VnodeHandle {
    let (commands, commands_rx) = mpsc::channel(MAILBOX_COMMANDS);
    let (control, control_rx) = mpsc::unbounded_channel();
    let gauge = Arc::new(Gauge::default());
    let id = PartitionId(u16::try_from(partition.id).unwrap_or(u16::MAX));
    let handle = VnodeHandle { module, partition: id, commands, control, gauge: gauge.clone() };
    let actor = Actor {
        module,
        partition,
        behaviour,
        guest: None,
        items: Items::default(),
        actor: annulus_ground::random(),
        dots: 0,
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
        modules: config.modules.clone(),
        pages: VecDeque::new(),
        turns,
        turn: None,
        room: Room::default(),
        has_items: false,
    };
    annulus_ground::spawn_on(&config.guests, actor.run());
    handle
}

impl Actor {
    async fn run(mut self) {
        loop {
            if self.step_is_due() {
                self.since_step = 0;
                self.step().await;
                // Control and commands are looked at between any two steps.
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
                    // Every handle is gone: the master dropped the vnode.
                    None => return,
                },
                turn = next_turn(&mut self.turn), if !self.sealed && self.turn.is_some() => {
                    self.since_step += 1;
                    self.turn = None;
                    self.one_page(turn).await;
                }
                () = relieved(&mut self.outgoing), if self.is_congested() => {}
                Some(command) = self.commands.recv(), if !self.sealed && !self.is_congested() => {
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

    fn step_is_due(&self) -> bool {
        self.step_is_wanted()
            && (self.since_step >= COMMANDS_PER_STEP
                || self.commands.is_empty()
                || self.sealed
                || self.is_congested())
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
                // A turn must not be held behind a seal.
                self.turn = None;
                let (module, stored) = (self.module, self.stored());
                self.tell_outgoing(StreamEvent::Sealed { module, round, stored });
            }
            Control::Ping(answer) => drop(answer.send(())),
            Control::Unseal => {
                self.sealed = false;
                self.turn = (!self.pages.is_empty()).then(|| self.turns.place());
            }
            Control::SetAside(error) => {
                (self.sealed, self.turn) = (false, None);
                for command in std::mem::take(&mut self.pages) {
                    self.gauge.taken(&command);
                    command.reply.send(Err(error.clone()));
                }
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
            Control::Count(answer) => drop(answer.send(self.count().await)),
            Control::Weigh { after, answer } => {
                let page = self.weigh_page(after).await;
                let _ = answer.send(page);
            }
            Control::Swap(behaviour, answer) => self.start_swap(behaviour, answer).await,
            Control::End { .. } => unreachable!("the loop ends the vnode itself"),
        }
    }

    /// A page waits for its turn beside the commands, which go on.
    fn queue_page(&mut self, command: Command) {
        if self.pages.len() >= MAILBOX_COMMANDS {
            self.gauge.taken(&command);
            let message = "too many commands that go everywhere wait for this vnode; try again later";
            return command.reply.send(Err(RequestError::not_applied(ErrorCode::Overloaded, message)));
        }
        self.pages.push_back(command);
        self.turn.get_or_insert_with(|| self.turns.place());
    }

    async fn one_page(&mut self, turn: Option<Turn>) {
        if let Some(command) = self.pages.pop_front() {
            self.gauge.taken(&command);
            self.command(command).await;
        }
        drop(turn);
        if !self.pages.is_empty() {
            self.turn = Some(self.turns.place());
        }
    }

    /// Answers all that waits, tells the guest, and is gone.
    async fn end(mut self, error: RequestError, delete: bool, done: oneshot::Sender<()>) {
        self.commands.close();
        self.turn = None;
        for command in std::mem::take(&mut self.pages) {
            self.gauge.taken(&command);
            command.reply.send(Err(error.clone()));
        }
        while let Some(command) = self.commands.recv().await {
            self.gauge.taken(&command);
            command.reply.send(Err(error.clone()));
        }
        self.end_outgoing(delete).await;
        if let Some(mut guest) = self.guest.take() {
            let ended = async {
                if delete {
                    guest.delete().await?;
                }
                guest.terminate(if delete { "moved" } else { "stopped" }).await.map(drop)
            };
            if let Err(error) = ended.await {
                tracing::warn!(module = %self.behaviour.name, partition = self.partition.id, %error, "a vnode did not end in order");
            }
        }
        if mutants::on(Mutant::KeepItems) {
            std::mem::forget(self.items.clone());
        }
        let _ = done.send(());
    }

    /// The guest, made anew if there is none.
    pub(super) async fn guest(&mut self) -> Result<&mut Guest, RequestError> {
        if self.guest.is_none() {
            if let Some(until) = self.back_off_until
                && Instant::now() < until
            {
                return Err(RequestError::not_applied(
                    ErrorCode::NotReady,
                    format!(
                        "the vnode trapped {} times in a row and waits before it starts again; the last time: {}",
                        self.traps_in_a_row,
                        self.last_exit.as_deref().unwrap_or("unknown")
                    ),
                ));
            }
            self.start_guest().await?;
        }
        Ok(self.guest.as_mut().expect("made just above"))
    }

    async fn start_guest(&mut self) -> Result<(), RequestError> {
        let behaviour = self.behaviour.clone();
        match Guest::start(behaviour, self.partition, self.actor, self.dots, self.items.clone()).await {
            Ok(mut guest) => {
                if let Some(reason) = self.last_exit.take()
                    && let Err(error) = guest.handle_exit(&reason).await
                {
                    if error.poisons() {
                        let error = self.failed(error, Some(guest.dots()));
                        return Err(error);
                    }
                    self.broke_contract(&error);
                }
                self.has_items = false;
                self.room = Room::default();
                self.guest = Some(guest);
                Ok(())
            }
            Err(error) => Err(self.failed(error, None)),
        }
    }

    /// The guest's call failed: notes it, drops what is poisoned, and says it to the caller.
    pub(super) fn failed(&mut self, error: GuestError, dots: Option<u64>) -> RequestError {
        let poisons = error.poisons();
        let message = error.to_string();
        let code = match &error {
            GuestError::Trapped(_) => ErrorCode::Trapped,
            GuestError::TimedOut(_) => ErrorCode::DeadlineExceeded,
            GuestError::NoRoom(_) => ErrorCode::Overloaded,
            GuestError::InitRefused(_) => ErrorCode::NotReady,
            GuestError::Doomed(annulus_wasm::Doom::TooLarge { .. }) => ErrorCode::ValueTooLarge,
            GuestError::Doomed(_) => ErrorCode::ContractBroken,
        };
        if poisons && self.poisoned(&message, dots) {
            let partition = self.partition.id;
            return RequestError::unknown(
                ErrorCode::ItemsLost,
                format!(
                    "{message}; with it went what the module kept in memory in partition {partition}: \
                     look before you send again what was acknowledged"
                ),
            );
        }
        RequestError::not_applied(code, message)
    }

    /// A callback did what it may not do. What it did was dropped, and the vnode goes on without it: a
    /// fault of the module's must not keep a partition from moving or starting.
    pub(super) fn broke_contract(&self, error: &GuestError) {
        let (module, partition, reason) = (&*self.behaviour.name, self.partition.id, error.to_string());
        tracing::warn!(module, partition, reason, "a callback of a guest broke the contract");
        self.incidents.note("contract-broken", module, Some(partition), &reason);
    }

    /// The guest is gone; true if items went with it.
    fn poisoned(&mut self, reason: &str, dots: Option<u64>) -> bool {
        let lost = self.guest.take();
        self.dots = dots.or(lost.as_ref().map(Guest::dots)).unwrap_or(self.dots);
        self.traps_in_a_row += 1;
        self.gauge.traps.fetch_add(1, Ordering::Relaxed);
        self.last_exit = Some(reason.to_owned());
        tracing::warn!(module = %self.behaviour.name, partition = self.partition.id, reason, "a vnode's guest ended and is made anew");
        if self.traps_in_a_row >= TRAPS_BEFORE_BACK_OFF {
            let doublings = (self.traps_in_a_row - TRAPS_BEFORE_BACK_OFF).min(16);
            let wait = (FIRST_BACK_OFF * 2u32.pow(doublings)).min(LONGEST_BACK_OFF);
            self.back_off_until = Some(Instant::now() + wait);
            self.gauge
                .back_off_ms
                .store(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        // A guest that keeps its items took them with it.
        let kept = lost.is_some_and(|guest| guest.keeps_items());
        let loses = kept && std::mem::take(&mut self.has_items);
        if loses {
            self.watch_loss();
            self.incidents.possible_loss(&self.behaviour.name, self.module, self.partition.id, reason);
        }
        if kept {
            self.abandon_moves("its guest ended and took its items with it", loses);
        }
        loses
    }

    /// What names this vnode's writes.
    pub(super) fn actor_id(&self) -> u64 {
        self.actor
    }

    /// The guest may have been given items.
    pub(super) async fn got_items(&mut self) {
        if !std::mem::replace(&mut self.has_items, true) {
            self.modules.filled(self.module).await;
        }
    }

    /// A command that may write came back.
    pub(super) async fn wrote(&mut self, info: &CommandInfo) {
        self.got_items().await;
        if info.frees {
            self.room.freed();
        }
    }

    /// A call of the guest succeeded.
    pub(super) fn recovered(&mut self) {
        if self.traps_in_a_row > 0 {
            self.traps_in_a_row = 0;
            self.back_off_until = None;
            self.gauge.back_off_ms.store(0, Ordering::Relaxed);
        }
    }
}

/// Waits for a turn; for ever without a place.
async fn next_turn(place: &mut Option<Place>) -> Option<Turn> {
    match place {
        Some(place) => place.await,
        None => std::future::pending().await,
    }
}
