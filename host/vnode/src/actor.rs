//! The actor of one vnode: one mailbox, one guest instance, one operation at a time.
//!
//! The loop of an actor runs its operations one after the other. So writes are forwarded in commit order (R15) and a
//! seal is final (R1) without locks.
//!
//! This file has the state of an actor, its guest, and the handling of failures. `run` is the loop; `command`,
//! `handoff`, `swap`, `sweep` and `items` are the operations that it runs; `store` opens and closes the items.

mod command;
mod handoff;
mod items;
mod replica;
pub(super) mod run;
mod store;
mod swap;
mod sweep;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use annulus_core::contract::Partition;
use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{ErrorCode, RequestError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::control::{Control, SwapReport};
use super::coverage_limit::{CoverageQueue, PendingPermit};
use super::guest::Guest;
use super::incidents::Incidents;
use super::mailbox::{Command, Gauge};
use super::memory::Compaction;
use super::moves::{LateStart, Swap, Sweep};
use super::outgoing::{Outgoing, StreamEvent};
use super::parked::Parked;
use super::release::Release;
use super::source::ModuleSource;
use super::watch::{WatchedVnode, Watcher};
use annulus_storage::{Items, Writer};
use annulus_wasm::{Doom, GuestError};

/// Number of consecutive traps after which a vnode waits before it starts a new instance.
const TRAPS_BEFORE_BACK_OFF: u32 = 5;
/// The first wait. Each further trap doubles it.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

pub(super) struct Actor {
    module: ModuleUid,
    partition: Partition,
    release: Arc<Release>,
    guest: Option<Guest>,
    items: Items,
    /// True once the store of the items is open.
    is_open: bool,
    /// Answers that wait until the items that they tell of are durable.
    parked: Arc<Parked>,
    /// The identity in the dots of this vnode's writes. Its number of dots is up to date while there is no guest.
    writer: Writer,
    commands: mpsc::Receiver<Command>,
    control: mpsc::UnboundedReceiver<Control>,
    sealed: bool,
    /// `Some` if the vnode is set aside: it keeps its items and answers every command with this error.
    aside: Option<RequestError>,
    outgoing: Option<Outgoing>,
    /// A handoff that started during a swap.
    late: Option<LateStart>,
    swap: Option<Swap>,
    sweep: Sweep,
    /// Number of commands since the last step of background work.
    since_step: u32,
    traps_in_a_row: u32,
    back_off_until: Option<Instant>,
    /// The reason why the last guest ended. `None` once the next guest has received it.
    last_exit: Option<String>,
    gauge: Arc<Gauge>,
    incidents: Arc<Incidents>,
    modules: Arc<dyn ModuleSource>,
    /// Pages of coverage commands that wait for a permit.
    pages: VecDeque<Command>,
    permits: CoverageQueue,
    /// Position in the queue for a permit, while there are pages.
    permit: Option<PendingPermit>,
    compaction: Compaction,
    /// True if the guest may have got items since it started.
    has_items: bool,
    /// False while the store of one of several replicas is being built: it takes items and answers nothing (R5).
    complete: bool,
    /// The items that the present command has written, for the other replicas.
    written: Vec<annulus_core::item::Item>,
}

impl Actor {
    /// Return the guest. Start one if there is none.
    async fn guest(&mut self) -> Result<&mut Guest, RequestError> {
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
        Ok(self.guest.as_mut().expect("started just above"))
    }

    async fn start_guest(&mut self) -> Result<(), RequestError> {
        self.open_store().await?;
        let release = self.release.clone();
        match Guest::start(&release, self.partition, self.writer, self.items.clone()).await {
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
                self.compaction = Compaction::default();
                self.guest = Some(guest);
                Ok(())
            }
            Err(error) => Err(self.failed(error, None)),
        }
    }

    /// Handle the failure of a call: drop a poisoned guest, and return the error for the caller. `dots` are those of
    /// a guest that failed before it became this vnode's.
    fn failed(&mut self, error: GuestError, dots: Option<u64>) -> RequestError {
        let poisons = error.poisons();
        let message = error.to_string();
        let code = match &error {
            GuestError::Trapped(_) => ErrorCode::Trapped,
            GuestError::TimedOut(_) => ErrorCode::DeadlineExceeded,
            GuestError::NoRoom(_) => ErrorCode::Overloaded,
            GuestError::InitRefused(_) => ErrorCode::NotReady,
            GuestError::Doomed(Doom::TooLarge { .. }) => ErrorCode::ValueTooLarge,
            GuestError::Doomed(Doom::StorageFull(_)) => ErrorCode::PartitionFull,
            // The guest was told that there are no items, and may remember that: it ends.
            GuestError::Doomed(Doom::StorageFailed(error)) => return self.not_committed(error),
            GuestError::Doomed(_) => ErrorCode::ContractBroken,
        };
        if poisons && self.poisoned(&message, dots) {
            let partition = self.partition.id;
            return RequestError::unknown(
                ErrorCode::ItemsLost,
                format!(
                    "{message}; the items that the module kept in memory in partition {partition} are lost: \
                     check before you repeat writes that were acknowledged"
                ),
            );
        }
        RequestError::not_applied(code, message)
    }

    /// Note a callback that broke the contract. Its effects were dropped and the vnode continues: a bug of the module
    /// must not keep a partition from moving or starting.
    fn broke_contract(&self, error: &GuestError) {
        let (module, partition, reason) = (&*self.release.name, self.partition.id, error.to_string());
        if matches!(error, GuestError::Doomed(Doom::StorageFailed(_))) {
            tracing::warn!(module, partition, reason, "a callback of a guest could not read its items");
            return;
        }
        tracing::warn!(module, partition, reason, "a callback of a guest broke the contract");
        self.incidents.note("contract-broken", module, Some(partition), &reason);
    }

    /// Drop a poisoned guest. Return true if items are lost with it.
    fn poisoned(&mut self, reason: &str, dots: Option<u64>) -> bool {
        let lost = self.guest.take();
        self.writer.dots = dots.or(lost.as_ref().map(Guest::dots)).unwrap_or(self.writer.dots);
        self.traps_in_a_row += 1;
        self.gauge.traps.fetch_add(1, Ordering::Relaxed);
        self.last_exit = Some(reason.to_owned());
        tracing::warn!(module = %self.release.name, partition = self.partition.id, reason, "a vnode's guest ended; a new one starts on demand");
        if self.traps_in_a_row >= TRAPS_BEFORE_BACK_OFF {
            let doublings = (self.traps_in_a_row - TRAPS_BEFORE_BACK_OFF).min(16);
            let wait = (FIRST_BACK_OFF * 2u32.pow(doublings)).min(LONGEST_BACK_OFF);
            self.back_off_until = Some(Instant::now() + wait);
            self.gauge
                .back_off_ms
                .store(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        // Items in the guest's memory are lost; those in host storage are not.
        let kept = lost.is_some_and(|guest| guest.keeps_items());
        let loses = kept && std::mem::take(&mut self.has_items);
        if loses {
            self.watched(|watcher, vnode| watcher.lost(&vnode));
            self.incidents.possible_loss(&self.release.name, self.module, self.partition.id, reason);
        }
        if kept {
            self.abandon_moves("its guest ended and its items are lost", loses);
        }
        loses
    }

    /// End the handoff and the swap of items that no longer exist.
    fn abandon_moves(&mut self, reason: &str, lost: bool) {
        // The handoff starts again with the items that exist then.
        let (module, reason) = (self.module, reason.to_owned());
        self.send_event(StreamEvent::Broken { module, reason });
        if let Some(swap) = self.swap.take() {
            // No items are left to carry over, and the callers have got the error of the trap: switch to the new
            // release at once. Otherwise a release without the bug could not replace one that traps often. The items
            // that were carried over so far are dropped too: a part of the items is worse than none.
            self.release = swap.release;
            let _ = swap.answer.send(Ok(SwapReport { items: 0, lost, ..swap.report }));
        }
    }

    /// Note that the guest may have got items, or is about to.
    ///
    /// # Errors
    /// It must not get any.
    async fn got_items(&mut self) -> Result<(), String> {
        if !self.has_items {
            self.modules.filled(self.module).await?;
            self.has_items = true;
        }
        Ok(())
    }

    /// Note a successful call of the guest: the back-off ends.
    fn recovered(&mut self) {
        if self.traps_in_a_row > 0 {
            self.traps_in_a_row = 0;
            self.back_off_until = None;
            self.gauge.back_off_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Send an event to the handoff, if there is one.
    fn send_event(&self, event: StreamEvent) {
        if let Some(outgoing) = &self.outgoing {
            // The send fails if the handoff has ended; it needs no events then.
            let _ = outgoing.sink.send(event);
        }
    }

    /// Report to the watcher, if there is one.
    fn watched(&self, report: impl FnOnce(&dyn Watcher, WatchedVnode<'_>)) {
        let Some(watcher) = &self.release.watcher else { return };
        let Ok(partition) = u16::try_from(self.partition.id).map(PartitionId) else { return };
        report(&**watcher, WatchedVnode { name: &self.release.name, module: self.module, partition });
    }
}

#[cfg(test)]
mod tests;
