//! What a vnode does between commands: pages of a handoff, of a swap, of a sweep.
//!
//! All three are the same fold (R17: pure pages in key order), so that commands run between
//! any two pages and what they write follows in the same order (R15).

use std::sync::Arc;
use std::time::Duration;

use annulus_core::handoff::Tally;
use annulus_core::mutants::{self, Mutant};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::actor::Actor;
use super::guest::{Behaviour, Guest, Items};
use super::mailbox::{Count, Outgoing, StreamEvent, SwapReport, Taken};
use annulus_storage::Storage;
use annulus_wasm::{Budget, Doom, GuestError, Item, Limits};

/// One page of a fold: some 100 µs of the guest's time.
pub(super) const PAGE: Budget = Budget { items: 256, bytes: 64 << 10 };
/// Writes after which a guest's tombstones are looked for: a deleted key costs memory until
/// then, and a sweep over many items costs little beside this many writes.
const WRITES_BEFORE_SWEEP: u64 = 16 << 10;

/// By how much [`Mutant::LatePage`] puts off a page.
const LATE: Duration = Duration::from_millis(50);

/// An item may be so many times as long on the wire as in the guest's memory.
const ENCODED: usize = 8;
/// Pages without items that may follow one another in a swap.
const EMPTY_PAGES: u32 = 1024;

/// A swap under way: the new instance, and how far the fold of the old one is.
pub(super) struct SwapState {
    behaviour: Arc<Behaviour>,
    guest: Guest,
    after: Option<Vec<u8>>,
    /// Pages without items, the last ones in a row.
    empty: u32,
    /// Bytes of items so far.
    bytes: usize,
    report: SwapReport,
    answer: oneshot::Sender<Result<SwapReport, String>>,
}

impl SwapState {
    /// Can this page be one of a fold that ends? One that does not would keep the module's release from being
    /// followed by any other.
    fn ends(&mut self, items: &[Item]) -> Result<(), Doom> {
        self.empty = if items.is_empty() { self.empty + 1 } else { 0 };
        self.bytes +=
            items.iter().map(|item| item.key.len() + item.sort.len() + item.value.len()).sum::<usize>();
        if self.empty > EMPTY_PAGES {
            return Err(Doom::EndlessFold("page after page is empty"));
        }
        if self.bytes > ENCODED * Limits::default().memory_bytes {
            return Err(Doom::EndlessFold("it gave more items than the guest has memory for"));
        }
        Ok(())
    }
}

/// What a handoff that began within a swap has asked for meanwhile.
#[derive(Default)]
pub(super) struct LateStart {
    /// Attempt and token of the page that is wanted.
    page: Option<(u64, Option<Vec<u8>>)>,
}

/// Looks for tombstones that a guest keeps, once there were many writes.
#[derive(Default)]
pub(super) struct Sweep {
    writes: u64,
    running: bool,
    after: Option<Vec<u8>>,
}

impl Sweep {
    pub(super) fn wrote(&mut self) {
        self.writes += 1;
        if self.writes >= WRITES_BEFORE_SWEEP {
            *self = Self { writes: 0, running: true, after: None };
        }
    }
}

impl Actor {
    pub(super) fn step_is_wanted(&self) -> bool {
        self.swap.is_some() || (self.sweep.running && self.outgoing.is_none())
    }

    pub(super) async fn step(&mut self) {
        if self.swap.is_some() {
            self.step_swap().await;
        } else {
            self.step_sweep().await;
        }
    }

    /// The guest's items are gone, so what carried them elsewhere is over.
    pub(super) fn abandon_moves(&mut self, reason: &str, lost: bool) {
        // The handoff starts again with what is there then.
        let (module, reason) = (self.module, reason.to_owned());
        self.tell_outgoing(StreamEvent::Broken { module, reason });
        if let Some(swap) = self.swap.take() {
            // There is nothing left to carry over, and who asked for what trapped is told so: the new
            // release takes over at once. Else one that no longer traps could not take the place of one that
            // often does. What was carried so far goes with the rest: half of the items are none.
            self.behaviour = swap.behaviour;
            let _ = swap.answer.send(Ok(SwapReport { items: 0, lost, ..swap.report }));
        }
    }

    pub(super) fn tell_outgoing(&mut self, event: StreamEvent) {
        if let Some(outgoing) = &self.outgoing {
            // A handoff that is gone says so by itself; nobody waits for this.
            let _ = outgoing.sink.send(event);
        }
    }

    /// Items of a write go into the stream of the handoff, if there is one.
    pub(super) fn tell_forward(&mut self, items: Vec<Item>) {
        if self.outgoing.is_some() && !items.is_empty() && !mutants::on(Mutant::LoseForward) {
            let module = self.module;
            self.tell_outgoing(StreamEvent::Forward { module, items });
        }
    }

    /// Writes follow from here on. The guest hears of the handoff, and pages are read, once a swap that
    /// is under way is over: its pages leave room for commands, and the new instance has all items.
    pub(super) async fn start_outgoing(&mut self, outgoing: Outgoing) {
        self.outgoing = Some(outgoing);
        if self.swap.is_some() {
            self.late = Some(LateStart::default());
        } else {
            self.announce_outgoing().await;
        }
    }

    pub(super) async fn start_late(&mut self) {
        let Some(late) = self.late.take() else { return };
        self.announce_outgoing().await;
        if let Some((attempt, after)) = late.page {
            self.read_page(attempt, after).await;
        }
    }

    async fn announce_outgoing(&mut self) {
        let Some(outgoing) = &self.outgoing else { return };
        let (kind, target) = (outgoing.kind, outgoing.target.clone());
        let asked = match &mut self.guest {
            Some(guest) => guest.handoff_starting(kind, &target).await,
            None => Ok(true),
        };
        let reason = match asked {
            Ok(true) => return,
            Ok(false) => "the module put the handoff off".to_owned(),
            Err(error) if !error.poisons() => return self.broke_contract(&error),
            Err(error) => self.failed(error, None).message,
        };
        let module = self.module;
        self.tell_outgoing(StreamEvent::Broken { module, reason });
    }

    pub(super) async fn end_outgoing(&mut self, finished: bool) {
        let Some(outgoing) = self.outgoing.take() else { return };
        // Another node has them: what becomes of this guest from here on loses nothing.
        self.has_items &= !finished;
        // It was never told of the start.
        if self.late.take().is_some() {
            return;
        }
        if let Some(guest) = &mut self.guest
            && let Err(error) = guest.handoff_ended(outgoing.kind, &outgoing.target, finished).await
        {
            if error.poisons() {
                self.failed(error, None);
            } else {
                self.broke_contract(&error);
            }
        }
    }

    pub(super) async fn read_page(&mut self, attempt: u64, after: Option<Vec<u8>>) {
        if let Some(late) = &mut self.late {
            late.page = Some((attempt, after));
            return;
        }
        let page = match self.guest().await {
            Ok(guest) => match guest.fold(after.as_deref(), PAGE).await {
                Ok(mut page) => {
                    if mutants::on(Mutant::LoseAnItem) {
                        page.items.pop();
                    }
                    Ok(page)
                }
                Err(error) => Err(self.failed(error, None).message),
            },
            Err(error) => Err(error.message),
        };
        let module = self.module;
        let event = StreamEvent::Page { module, attempt, page };
        if mutants::on(Mutant::LatePage) {
            return self.tell_late(event);
        }
        self.tell_outgoing(event);
    }

    /// What [`Mutant::LatePage`] does: the writes of a moment go before the page.
    fn tell_late(&self, event: StreamEvent) {
        let Some(sink) = self.outgoing.as_ref().map(|outgoing| outgoing.sink.clone()) else { return };
        annulus_ground::spawn(async move {
            tokio::time::sleep(LATE).await;
            let _ = sink.send(event);
        });
    }

    /// Merges items from another replica.
    pub(super) async fn take(&mut self, items: Vec<Item>) -> Result<Taken, String> {
        let guest = self.guest().await.map_err(|error| error.message)?;
        let mut tally = Tally::default();
        for item in &items {
            tally.add_parts(&item.key, &item.sort, &item.value, item.deleted);
        }
        let some = !items.is_empty();
        let taken = guest.take(items).await;
        if some {
            self.got_items().await;
        }
        self.recovered();
        taken.map(|rejections| Taken { tally, rejections }).map_err(|error| self.failed(error, None).message)
    }

    /// How many items there are, if the host keeps them.
    pub(super) fn stored(&self) -> Option<u64> {
        let kept_by_guest = self.behaviour.description.exported.handoff
            || self.guest.as_ref().is_some_and(Guest::keeps_items);
        (!kept_by_guest).then(|| self.items.read().len() as u64)
    }

    /// How many items there are. An answer may be late or rough; it is for people to look at.
    pub(super) async fn count(&mut self) -> Count {
        if let Some(stored) = self.stored() {
            return Count::Stored(stored);
        }
        let Some(guest) = &mut self.guest else { return Count::Said(0) };
        match guest.count().await {
            Ok(count) => Count::Said(count),
            Err(error) => {
                self.failed(error, None);
                Count::Unknown
            }
        }
    }

    /// Begins to go over to `behaviour`. Nothing is changed if its instance cannot start.
    pub(super) async fn start_swap(
        &mut self,
        behaviour: Arc<Behaviour>,
        answer: oneshot::Sender<Result<SwapReport, String>>,
    ) {
        if let Some(superseded) = self.swap.take() {
            let _ = superseded.answer.send(Err("a later swap took its place".to_owned()));
        }
        let began = Instant::now();
        // No instance yet (or it trapped): there is nothing to carry over.
        let Some(old) = &self.guest else {
            self.behaviour = behaviour;
            let _ = answer.send(Ok(SwapReport::default()));
            return;
        };
        let dots = old.dots();
        // Two releases whose items are in host storage share them: nothing to carry over.
        let shared = !old.keeps_items() && !behaviour.description.exported.handoff;
        let items = if shared { self.items.clone() } else { Items::default() };
        let started = Guest::start(behaviour.clone(), self.partition, self.actor_id(), dots, items).await;
        let guest = match started {
            Ok(guest) => guest,
            Err(error) => return drop(answer.send(Err(error.to_string()))),
        };
        let stall_us = micros(began);
        let report = SwapReport { stall_us, ..SwapReport::default() };
        self.swap = Some(SwapState { behaviour, guest, after: None, empty: 0, bytes: 0, report, answer });
        if shared {
            self.finish_swap(began).await;
        }
    }

    /// Carries one page over to the new instance; with the last one, switches.
    async fn step_swap(&mut self) {
        let began = Instant::now();
        let Some(mut swap) = self.swap.take() else { return };
        let page = match self.guest.as_mut() {
            Some(old) => old.fold(swap.after.as_deref(), PAGE).await,
            None => return drop(swap.answer.send(Err("the old instance is gone".to_owned()))),
        };
        let page = match page {
            Ok(page) => page,
            // It took its items with it: what it was to be followed by takes over.
            Err(error) if error.poisons() => {
                self.swap = Some(swap);
                self.failed(error, None);
                return;
            }
            Err(error) => {
                let reason = format!("the old release could not give its items: {error}");
                self.failed(error, None);
                return drop(swap.answer.send(Err(reason)));
            }
        };
        let (items, next) = (page.items, page.next);
        if let Err(reason) = swap.ends(&items) {
            return drop(
                swap.answer.send(Err(format!("the old release could not give its items: {reason}"))),
            );
        }
        let count = items.len() as u64;
        if let Err(reason) = carry(&mut swap.guest, items).await {
            return drop(swap.answer.send(Err(reason)));
        }
        swap.report.items += count;
        swap.report.stall_us = swap.report.stall_us.max(micros(began));
        let last = next.is_none();
        swap.after = next;
        self.swap = Some(swap);
        if last {
            self.finish_swap(began).await;
        }
    }

    /// What a command wrote meanwhile goes to the new instance too.
    pub(super) async fn forward_to_swap(&mut self, items: Vec<Item>) {
        let Some(mut swap) = self.swap.take() else { return };
        match carry(&mut swap.guest, items).await {
            Ok(()) => self.swap = Some(swap),
            Err(reason) => drop(swap.answer.send(Err(reason))),
        }
    }

    /// The switch itself: from here on the new instance answers.
    async fn finish_swap(&mut self, began: Instant) {
        let Some(swap) = self.swap.take() else { return };
        let SwapState { behaviour, mut guest, mut report, answer, .. } = swap;
        if let Some(mut old) = self.guest.take() {
            match old.terminate("swap").await {
                Ok(last) => {
                    // The new instance sees them if it has the same host storage; else they are
                    // carried over as all items before them.
                    if !Arc::ptr_eq(&old.items(), &guest.items())
                        && let Err(reason) = carry(&mut guest, last.clone()).await
                    {
                        tracing::warn!(module = %self.behaviour.name, reason, "the last words of the old release are lost");
                    }
                    self.tell_forward(last);
                }
                Err(error) => {
                    tracing::warn!(module = %self.behaviour.name, %error, "the old release did not end in order");
                }
            }
            guest.set_dots(old.dots());
        }
        self.items = guest.items();
        self.room.compacted(guest.memory());
        self.guest = Some(guest);
        self.behaviour = behaviour;
        report.stall_us = report.stall_us.max(micros(began));
        let _ = answer.send(Ok(report));
    }

    /// One page of looking for tombstones: with one replica nobody needs them (R12).
    async fn step_sweep(&mut self) {
        let after = self.sweep.after.take();
        let Some(guest) = self.guest.as_mut().filter(|guest| guest.keeps_items()) else {
            self.sweep = Sweep::default();
            return;
        };
        let swept: Result<Option<Vec<u8>>, GuestError> = async {
            let page = guest.fold(after.as_deref(), PAGE).await?;
            let tombstones: Vec<Item> = page.items.into_iter().filter(|item| item.deleted).collect();
            if !tombstones.is_empty() {
                guest.forget(&tombstones).await?;
            }
            Ok(page.next)
        }
        .await;
        match swept {
            Ok(next) => {
                self.sweep.running = next.is_some();
                self.sweep.after = next;
            }
            Err(error) => {
                self.sweep = Sweep::default();
                self.failed(error, None);
            }
        }
    }
}

/// Gives items to a swap's new instance; what it cannot take fails the swap, not the items.
async fn carry(guest: &mut Guest, items: Vec<Item>) -> Result<(), String> {
    if items.is_empty() {
        return Ok(());
    }
    match guest.take(items).await {
        Ok(rejections) => match rejections.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "the new release cannot take {} of the items; the first: {}",
                rejections.len(),
                first.reason
            )),
        },
        Err(error) => Err(format!("the new release failed on the items of the old: {error}")),
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
