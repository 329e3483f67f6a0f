//! The owner's side of a handoff.

mod interface;
mod outgoing;
mod reading;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::ModuleUid;
use crate::item::Item;
use crate::mutants::{self, Mutant};
use crate::ring::Fate;

use super::TransferState;
use super::message::{Begin, Have, ModuleRelease, Refused, Start, ToReceiver, ToSender};

pub use interface::{Effect, Event, Limits, Task};
use outgoing::Outgoing;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Streaming,
    Sealing,
    Sealed,
    /// The receiver has everything, and a flip may be proposed.
    Flipping,
    Cancelling,
    Finished(Fate),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    Dialing,
    /// `Begin` was sent.
    Greeting,
    Up,
}

/// The maximum bytes of items in one message, unless a single item has more. It is small, so that other messages do
/// not wait long behind one.
const MESSAGE_BYTES: usize = 512 << 10;

/// Hands one partition over to one node by one transfer. See [`super`] for its invariants, [`Event`] for its input
/// and [`Effect`] for its output.
#[derive(Clone, Debug)]
pub struct Sender {
    task: Task,
    limits: Limits,
    phase: Phase,
    link: Link,
    stream: u64,
    attempt: u64,
    /// The present attempt; `None` if nothing can be resumed.
    outgoing: Option<Outgoing>,
    /// The log index of `task.modules`.
    applied: u64,
    /// Links lost, or not opened, since the receiver last acknowledged something new.
    losses: u32,
    /// True while `Effect::Retry` is not answered.
    pausing: bool,
    /// True without a permit or in a pause: no page is read and no seal started.
    held: bool,
    /// True if a kept stage may be compared. False once a vnode has returned its items out of order.
    compares: bool,
    /// The number of items of each sealed vnode whose items the host keeps.
    counts: BTreeMap<ModuleUid, u64>,
    error: Option<String>,
    /// The receiver's reason to refuse the last stream, until it accepts another.
    refused: Option<Refused>,
    /// The items and bytes of the last attempt that has ended.
    sent: (u64, u64),
}

impl Sender {
    /// Create a sender that waits for `Start`. `applied` is the log index of the state that `task` is made from.
    pub fn new(task: Task, applied: u64, limits: Limits) -> Self {
        Self {
            // The partition is sealed and this process has no record of the proposals, which may include a flip.
            phase: if task.sealed { Phase::Flipping } else { Phase::Waiting },
            task,
            limits,
            link: Link::Down,
            stream: 0,
            attempt: 0,
            outgoing: None,
            applied,
            losses: 0,
            pausing: false,
            held: false,
            compares: true,
            counts: BTreeMap::new(),
            error: None,
            refused: None,
            sent: (0, 0),
        }
    }

    /// Return the state, for `annulus transfers`.
    pub fn state(&self) -> TransferState {
        match self.phase {
            Phase::Waiting => TransferState::Waiting,
            Phase::Streaming | Phase::Sealing if self.link == Link::Up => TransferState::Running,
            Phase::Streaming | Phase::Sealing => TransferState::Waiting,
            Phase::Sealed | Phase::Flipping => TransferState::Sealed,
            Phase::Finished(Fate::Flipped) => TransferState::Done,
            // The receiver's log has ended the transfer. Most often it has flipped, and this node has not applied the
            // flip yet.
            Phase::Cancelling if self.refused == Some(Refused::NotPending) => TransferState::Sealed,
            Phase::Cancelling | Phase::Finished(_) => TransferState::Failed,
        }
    }

    /// Return the items and bytes sent in this attempt, or in the last one.
    pub fn progress(&self) -> (u64, u64) {
        self.outgoing.as_ref().map_or(self.sent, |outgoing| outgoing.done.total())
    }

    /// Return the progress by module; empty once the transfer has ended.
    pub fn progress_by_module(&self) -> impl Iterator<Item = (ModuleUid, u64, u64)> {
        let amounts = self.outgoing.iter().flat_map(|outgoing| &outgoing.done.0);
        amounts.map(|(module, (items, bytes))| (*module, *items, *bytes))
    }

    /// Return true if the partition is sealed, about to be, or being cancelled, so that the transfer must not wait.
    pub fn is_urgent(&self) -> bool {
        matches!(self.phase, Phase::Sealing | Phase::Sealed | Phase::Flipping | Phase::Cancelling)
    }

    /// Return the receiver's reason to refuse the last stream, if it has not accepted one since.
    pub fn refusal(&self) -> Option<&Refused> {
        self.refused.as_ref()
    }

    /// Return the last failure.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Return true if the log has ended this transfer. The sender then does nothing more.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished(_))
    }

    /// Return true if so much is unacknowledged that writes of this partition should wait. Return false without a
    /// link, because a dead receiver must not delay writes.
    pub fn is_congested(&self) -> bool {
        let kept = self.outgoing.as_ref().map_or(0, |outgoing| outgoing.kept_bytes);
        self.link == Link::Up && kept > self.limits.backlog_bytes && !mutants::on(Mutant::NeverCongested)
    }

    /// Return true if the seal that was requested is still wanted. It is not if the stream has ended or starts again,
    /// because all of it would then be sent while requests wait.
    pub fn wants_seal(&self) -> bool {
        self.phase == Phase::Sealing && self.link == Link::Up && self.outgoing.is_some()
    }

    /// Handle an event and return the effects, to be carried out in order.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Start if self.phase == Phase::Waiting => {
                self.phase = Phase::Streaming;
                self.connect(&mut effects);
            }
            Event::Start => self.connect(&mut effects),
            Event::Connected(stream) if stream == self.stream && self.link == Link::Dialing => {
                self.greet(&mut effects);
            }
            Event::Disconnected(stream) if stream == self.stream => self.disconnected(&mut effects),
            Event::Received(stream, message) if stream == self.stream => self.receive(message, &mut effects),
            Event::Connected(_) | Event::Disconnected(_) | Event::Received(..) => {}
            Event::Page { attempt, module, items, next } if attempt == self.attempt => {
                self.page(module, items, next, &mut effects);
            }
            Event::PageFailed { attempt, module, why } if attempt == self.attempt => {
                let read = |outgoing: &mut Outgoing| outgoing.reading.take_if(|(_, of)| *of == module);
                if self.outgoing.as_mut().and_then(read).is_some() {
                    self.error = Some(why);
                    self.pause(&mut effects);
                }
            }
            Event::Page { .. } | Event::PageFailed { .. } => {}
            Event::Forward(..) if self.held && mutants::on(Mutant::LoseForwardWhileHeld) => {}
            Event::Forward(module, items) => self.enqueue_items(module, items, &mut effects),
            Event::Held(held) => {
                self.held = held;
                self.pump(&mut effects);
            }
            Event::Deployed(module, applied) => self.deployed(module, applied, &mut effects),
            Event::Undeployed(module) => self.undeployed(module, &mut effects),
            Event::Sealed { counts } => self.sealed(counts, &mut effects),
            Event::SealRefused if self.phase == Phase::Sealing => {
                self.phase = Phase::Streaming;
                self.pause(&mut effects);
            }
            Event::SealRefused => {}
            Event::SourceBroken(why) => self.source_broken(why, &mut effects),
            Event::NotProposed => self.pause(&mut effects),
            Event::Fate(fate) => self.end(fate, &mut effects),
            Event::Retry => self.retry(&mut effects),
        }
        effects
    }

    fn pause(&mut self, effects: &mut Vec<Effect>) {
        if !self.is_finished() && !std::mem::replace(&mut self.pausing, true) {
            effects.push(Effect::Retry);
        }
    }

    fn retry(&mut self, effects: &mut Vec<Effect>) {
        self.pausing = false;
        match (self.phase, self.link) {
            (Phase::Finished(_) | Phase::Waiting, _) => {}
            (Phase::Cancelling, _) => effects.push(Effect::ProposeCancel),
            (_, Link::Down) => self.connect(effects),
            // The receiver has sent `Ended`, or has reported later that it has everything.
            (Phase::Flipping, Link::Up) => effects.push(Effect::ProposeFlip),
            _ => self.pump(effects),
        }
    }

    fn connect(&mut self, effects: &mut Vec<Effect>) {
        if self.link == Link::Down && !matches!(self.phase, Phase::Cancelling | Phase::Finished(_)) {
            self.stream += 1;
            self.link = Link::Dialing;
            effects.push(Effect::Connect(self.stream));
        }
    }

    fn greet(&mut self, effects: &mut Vec<Effect>) {
        self.link = Link::Greeting;
        let first = self.outgoing.as_ref().map(Outgoing::first);
        let start = match (first, self.phase) {
            (Some(first), _) => Start::Resume { first },
            (None, Phase::Flipping) => Start::Ask,
            (None, _) => {
                self.attempt += 1;
                let unread = self.task.modules.iter().map(|module| (module.uid, None)).collect();
                let module = self.task.modules.first().map(|module| module.uid);
                self.outgoing = Some(Outgoing { unread, module, ..Outgoing::default() });
                Start::Fresh
            }
        };
        let begin = Begin {
            transfer: self.task.transfer,
            partition: self.task.partition,
            version: self.task.version,
            applied: self.applied,
            boot: self.task.boot,
            attempt: self.attempt,
            modules: self.task.modules.clone(),
            start,
        };
        effects.push(Effect::Send(self.stream, Arc::new(ToReceiver::Begin(begin))));
    }

    fn disconnected(&mut self, effects: &mut Vec<Effect>) {
        self.link = Link::Down;
        self.losses += 1;
        if matches!(self.phase, Phase::Sealed | Phase::Flipping) && self.losses >= self.limits.sealed_losses {
            self.error = Some("the partition is sealed, and the receiver cannot be reached".into());
            return self.cancel(effects);
        }
        self.forget_if_too_much();
        match self.phase {
            // Requests wait, so the sender connects again at once. A link that cannot be opened counts as lost.
            Phase::Sealed | Phase::Flipping => self.connect(effects),
            _ => self.pause(effects),
        }
    }

    /// Drop the stream and the attempt; the next stream starts from the first item.
    fn start_over(&mut self, effects: &mut Vec<Effect>) {
        self.outgoing = None;
        if self.link != Link::Down {
            effects.push(Effect::Disconnect(self.stream));
            self.link = Link::Down;
        }
        self.pause(effects);
    }

    /// Propose to cancel the transfer. The next transfer of the partition has another id and a separate stage.
    fn cancel(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Cancelling;
        self.start_over(effects);
        effects.push(Effect::ProposeCancel);
    }

    fn source_broken(&mut self, why: String, effects: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Cancelling | Phase::Finished(_)) {
            self.error = Some(why);
            self.refused = None;
            self.cancel(effects);
        }
    }

    fn receive(&mut self, message: ToSender, effects: &mut Vec<Effect>) {
        match (message, self.link) {
            (ToSender::Accept { have, kept, .. }, Link::Greeting) => self.accepted(have, kept, effects),
            (ToSender::Ack { seq }, Link::Up) => self.acknowledged(seq, effects),
            (ToSender::Differs { seq }, Link::Up) => self.differs(seq, effects),
            (ToSender::Ended { seq }, Link::Up) => match self.phase {
                Phase::Sealed
                    if self.outgoing.as_ref().is_some_and(|outgoing| outgoing.ended == Some(seq)) =>
                {
                    // The partition is sealed and the end was sent, so nothing remains to be read.
                    assert!(self.outgoing.as_ref().is_some_and(Outgoing::is_read));
                    self.phase = Phase::Flipping;
                    self.losses = 0;
                    effects.push(Effect::ProposeFlip);
                }
                _ => {}
            },
            (ToSender::Refuse { reason }, _) => self.refused(reason, effects),
            (_, _) => self.violated("it sent a message out of place", effects),
        }
    }

    fn violated(&mut self, what: &str, effects: &mut Vec<Effect>) {
        self.error = Some(format!("the receiver violates the protocol: {what}"));
        self.give_up(effects);
    }

    fn refused(&mut self, reason: Refused, effects: &mut Vec<Effect>) {
        // A later entry has replaced the transfer, and this node has not applied it yet, which is not a failure.
        if reason != Refused::NotPending {
            self.error = Some(reason.to_string());
        }
        self.refused = Some(reason);
        self.give_up(effects);
    }

    /// Abandon the stream. Before the seal, the transfer starts again. After it, a cancel is the fastest way to serve
    /// the partition again.
    fn give_up(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Sealed | Phase::Flipping => self.cancel(effects),
            Phase::Cancelling | Phase::Finished(_) => {}
            _ => self.start_over(effects),
        }
    }

    fn accepted(&mut self, have: Have, kept: bool, effects: &mut Vec<Effect>) {
        self.refused = None;
        if have == Have::All {
            match self.phase {
                // The partition was sealed before the receiver marked its stage complete, so no item is newer.
                Phase::Sealed | Phase::Flipping => {
                    self.phase = Phase::Flipping;
                    self.link = Link::Up;
                    self.losses = 0;
                    effects.push(Effect::ProposeFlip);
                }
                _ => self.violated("it reports a complete stage before the seal", effects),
            }
            return;
        }
        let next = match (have, &self.outgoing) {
            _ if self.phase == Phase::Flipping && !mutants::on(Mutant::StreamAgainUnderAFlip) => None,
            (Have::Below(next), Some(outgoing)) if (outgoing.first()..=outgoing.next).contains(&next) => {
                Some(next)
            }
            _ => None,
        };
        let Some(next) = next else { return self.receiver_lost_it(effects) };
        let Some(outgoing) = &mut self.outgoing else { return };
        if !mutants::on(Mutant::BelieveLostAnswers) {
            outgoing.doubt_below(next);
        }
        // An accept alone is not progress: a receiver accepts a stream each time, even if a message can never be
        // sent.
        if outgoing.acknowledge(next) || mutants::on(Mutant::TakeAcceptForProgress) {
            self.losses = 0;
        }
        self.link = Link::Up;
        // Nothing of this attempt has arrived, and the receiver has a stage of an earlier one, which is compared.
        if kept && self.compares && next == 0 && !outgoing.comparing && outgoing.is_untouched() {
            outgoing.comparing = true;
            effects.push(Effect::Send(self.stream, Arc::new(ToReceiver::Keep)));
        }
        let again = outgoing.kept.iter().map(|(_, message)| Effect::Send(self.stream, message.clone()));
        effects.extend(again);
        self.pump(effects);
    }

    /// Handle a receiver that has lost its stage. Before the seal, the stream starts again. After it, requests would
    /// wait for the whole stream, so the transfer is cancelled and the partition is served.
    fn receiver_lost_it(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Sealed | Phase::Flipping if !mutants::on(Mutant::StreamAgainUnderAFlip) => {
                self.error = Some("the receiver has lost the staged items".into());
                return self.cancel(effects);
            }
            Phase::Flipping => self.phase = Phase::Sealed,
            _ => {}
        }
        self.outgoing = None;
        self.greet(effects);
    }

    fn acknowledged(&mut self, seq: u64, effects: &mut Vec<Effect>) {
        let Some(outgoing) = &mut self.outgoing else { return };
        if seq >= outgoing.next {
            return self.violated("it acknowledges a message that was never sent", effects);
        }
        if outgoing.acknowledge(seq + 1) {
            self.losses = 0;
        }
        self.pump(effects);
    }

    fn enqueue_items(&mut self, module: ModuleUid, items: Vec<Item>, effects: &mut Vec<Effect>) {
        let Some(outgoing) = &mut self.outgoing else { return };
        if items.is_empty() {
            return;
        }
        if outgoing.ended.is_some() {
            self.error = Some("a write came after the seal".into());
            return self.cancel(effects);
        }
        outgoing.tallies.add(module, &items);
        outgoing.done.add(module, &items);
        let mut rest = items;
        loop {
            let after = rest.split_off(first_message(&rest));
            let items = std::mem::replace(&mut rest, after);
            let bytes = items.iter().map(Item::len).sum();
            self.enqueue(bytes, |seq| ToReceiver::Items { seq, module, items }, effects);
            if rest.is_empty() {
                break;
            }
        }
        self.forget_if_too_much();
    }

    fn enqueue(&mut self, bytes: usize, message: impl FnOnce(u64) -> ToReceiver, effects: &mut Vec<Effect>) {
        let Some(outgoing) = &mut self.outgoing else { return };
        let message = Arc::new(message(outgoing.next));
        if self.link == Link::Up {
            effects.push(Effect::Send(self.stream, message.clone()));
        }
        outgoing.kept.push_back((outgoing.next, message));
        outgoing.kept_bytes += bytes;
        outgoing.next += 1;
    }

    fn forget_if_too_much(&mut self) {
        let limit = self.limits.backlog_bytes;
        let too_much = self.outgoing.as_ref().is_some_and(|outgoing| outgoing.kept_bytes > limit);
        if too_much && self.link == Link::Down && !self.is_urgent() {
            self.outgoing = None;
        }
    }

    fn deployed(&mut self, module: ModuleRelease, applied: u64, effects: &mut Vec<Effect>) {
        self.applied = self.applied.max(applied);
        if let Some(known) = self.task.modules.iter_mut().find(|known| known.uid == module.uid) {
            *known = module;
            return;
        }
        self.task.modules.push(module);
        let Some(outgoing) = self.outgoing.as_mut().filter(|outgoing| outgoing.ended.is_none()) else {
            return;
        };
        outgoing.unread.push_back((module.uid, None));
        self.enqueue(0, |seq| ToReceiver::Module { seq, module, applied }, effects);
        self.settle();
        self.pump(effects);
    }

    fn undeployed(&mut self, module: ModuleUid, effects: &mut Vec<Effect>) {
        self.task.modules.retain(|known| known.uid != module);
        if let Some(outgoing) = &mut self.outgoing {
            // A page of this module that is being read may never arrive, because its vnode has ended.
            outgoing.reading.take_if(|(_, of)| *of == module);
            outgoing.unread.retain(|(unread, _)| *unread != module);
            outgoing.again.retain(|again| again.module != module);
        }
        self.pump(effects);
    }

    fn sealed(&mut self, counts: BTreeMap<ModuleUid, u64>, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Sealing => {
                self.phase = Phase::Sealed;
                self.counts = counts;
                self.pump(effects);
            }
            // The transfer was cancelled while the vnodes were being sealed.
            Phase::Finished(fate) => effects.push(Effect::Finish(fate)),
            _ => {}
        }
    }

    fn end(&mut self, fate: Fate, effects: &mut Vec<Effect>) {
        if fate == Fate::Pending || self.is_finished() {
            return;
        }
        self.sent = self.progress();
        self.phase = Phase::Finished(fate);
        self.outgoing = None;
        if self.link != Link::Down {
            effects.push(Effect::Disconnect(self.stream));
            self.link = Link::Down;
        }
        effects.push(Effect::Finish(fate));
    }
}

/// Return the number of items for the next message: at least one, whatever its size.
fn first_message(items: &[Item]) -> usize {
    let mut bytes = 0;
    let fits = items.iter().take_while(|item| {
        bytes += item.len();
        bytes <= MESSAGE_BYTES
    });
    fits.count().max(1)
}
