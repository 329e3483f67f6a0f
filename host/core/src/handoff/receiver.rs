//! The successor's side of a handoff.

mod filling;
mod interface;

use std::collections::BTreeMap;

use crate::ids::{BootId, ModuleUid};
use crate::mutants::{self, Mutant};
use crate::ring::Fate;

use super::message::{Begin, Have, Refused, Start, ToReceiver, ToSender};
use super::{Tallies, TransferState};

use filling::{End, Filling};
pub use interface::{Effect, Event, Found, StreamId};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Empty,
    /// A stage from before a restart, whose contents are unknown until they are compared.
    Kept,
    Filling(Filling),
    Complete,
    Finished(Fate),
}

/// Receives one partition from one node by one transfer. See [`super`] for its invariants, [`Event`] for its input
/// and [`Effect`] for its output.
#[derive(Clone, Debug)]
pub struct Receiver {
    boot: BootId,
    stage: Stage,
    generation: u64,
    stream: Option<StreamId>,
    /// The `Begin` of a `Fresh` stream until its next message, which shows that the sender has received the answer.
    /// An abandoned stream that arrives late must not drop the stage that a later stream has filled.
    fresh: Option<Begin>,
    /// True if the sender has asked whether the stage is complete while it is being marked complete.
    asked: bool,
    /// The items and bytes of a complete stage.
    taken: (u64, u64),
    /// True if the driver can compare and adopt stages.
    keeps: bool,
}

impl Receiver {
    /// Create a receiver for one transfer, of which this node has found `found` on its disk.
    pub fn new(boot: BootId, found: Found) -> Self {
        let stage = match found {
            Found::Nothing => Stage::Empty,
            Found::Part => Stage::Kept,
            Found::Complete => Stage::Complete,
        };
        Self {
            boot,
            stage,
            generation: 0,
            stream: None,
            fresh: None,
            asked: false,
            taken: (0, 0),
            keeps: false,
        }
    }

    /// Enable the comparison of a kept stage with the sender's items (R16). Without it, a `Fresh` stream drops the
    /// stage.
    pub fn keeping(self) -> Self {
        Self { keeps: true, ..self }
    }

    /// Return the state, for `annulus transfers`.
    pub fn state(&self) -> TransferState {
        match self.stage {
            Stage::Empty | Stage::Kept => TransferState::Waiting,
            Stage::Filling(_) => TransferState::Running,
            Stage::Complete => TransferState::Sealed,
            Stage::Finished(Fate::Flipped) => TransferState::Done,
            Stage::Finished(_) => TransferState::Failed,
        }
    }

    /// Return the items and bytes received so far.
    pub fn progress(&self) -> (u64, u64) {
        match &self.stage {
            Stage::Filling(filling) => filling.came.total(),
            _ => self.taken,
        }
    }

    /// Return true if a stream is open and has more messages to receive.
    pub fn is_taking(&self) -> bool {
        self.stream.is_some() && !matches!(self.stage, Stage::Complete | Stage::Finished(_))
    }

    /// Return true if the log has ended this transfer. The receiver then does nothing more.
    pub fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Finished(_))
    }

    /// Handle an event and return the effects, to be carried out in order.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Received(stream, ToReceiver::Begin(begin)) => self.begin(stream, begin),
            Event::Received(stream, _) if self.stream != Some(stream) => Vec::new(),
            Event::Received(_, message) => self.take(message).unwrap_or_else(|reason| self.give_up(reason)),
            Event::Disconnected(stream) => {
                if self.stream == Some(stream) {
                    (self.stream, self.fresh, self.asked) = (None, None, false);
                }
                Vec::new()
            }
            Event::Staged { generation, seq, taken } => self.staged(generation, seq, &taken),
            Event::Compared { generation, seq, same } => self.compared(generation, seq, same),
            Event::Counted { generation, counts } => self.counted(generation, &counts),
            Event::Completed(generation) => self.completed(generation),
            Event::Failed { generation, reason } => match self.filling(generation) {
                Some(_) => self.give_up(reason),
                None => Vec::new(),
            },
            Event::Fate(fate) => self.end(fate),
        }
    }

    fn begin(&mut self, stream: StreamId, begin: Begin) -> Vec<Effect> {
        if self.is_finished() {
            let refuse = ToSender::Refuse { reason: Refused::NotPending };
            return vec![Effect::Send(stream, refuse), Effect::Close(stream)];
        }
        let mut effects: Vec<Effect> =
            self.stream.filter(|old| *old != stream).map(Effect::Close).into_iter().collect();
        (self.stream, self.fresh, self.asked) = (Some(stream), None, false);
        let from = (begin.boot, begin.attempt);
        match (&self.stage, begin.start) {
            (_, Start::Fresh) => {
                self.fresh = Some(begin);
                if mutants::on(Mutant::DropAtBegin) {
                    effects.extend(self.open());
                }
                effects.extend(self.accept(Have::Below(0)));
            }
            (Stage::Complete, _) => effects.extend(self.accept(Have::All)),
            // Messages that have arrived are still staged, and need not be sent again.
            (Stage::Filling(filling), Start::Resume { first })
                if filling.from == from && first <= filling.next =>
            {
                effects.extend(self.accept(Have::Below(filling.next)));
            }
            // Everything is staged, and the stage is being marked complete: the answer follows.
            (Stage::Filling(filling), Start::Ask) if filling.is_whole() => self.asked = true,
            _ => effects.extend(self.accept(Have::Nothing)),
        }
        effects
    }

    /// Open a new stage if this is the second message of a `Fresh` stream.
    fn open(&mut self) -> Vec<Effect> {
        let Some(begin) = self.fresh.take() else { return Vec::new() };
        let mut effects = Vec::new();
        if self.stage != Stage::Empty {
            effects.push(Effect::Drop);
        }
        self.generation += 1;
        self.stage = Stage::Filling(Filling::of(&begin));
        let (generation, applied) = (self.generation, begin.applied);
        effects.push(Effect::Open { generation, modules: begin.modules, applied });
        effects
    }

    /// Continue with the kept stage, which the sender has compared.
    fn adopt(&mut self) -> Result<Vec<Effect>, Refused> {
        let Some(begin) = self.fresh.take().filter(|_| self.has_kept()) else {
            return Err(Refused::Stage("no stage exists that can be compared".into()));
        };
        self.generation += 1;
        self.stage = Stage::Filling(Filling::of(&begin));
        let (generation, applied) = (self.generation, begin.applied);
        Ok(vec![Effect::Adopt { generation, modules: begin.modules, applied }])
    }

    /// Return true if a stage exists that can be compared. A complete one cannot, because a flip may be in progress.
    fn has_kept(&self) -> bool {
        match self.stage {
            Stage::Kept => true,
            Stage::Filling(_) => self.keeps,
            _ => false,
        }
    }

    fn accept(&self, have: Have) -> Option<Effect> {
        let kept = self.fresh.is_some() && self.has_kept();
        self.send(ToSender::Accept { boot: self.boot, have, kept })
    }

    /// Report the progress of the stage, unless the stream is about to start another stage.
    fn report(&self, message: ToSender) -> Option<Effect> {
        if self.fresh.is_some() { None } else { self.send(message) }
    }

    fn send(&self, message: ToSender) -> Option<Effect> {
        Some(Effect::Send(self.stream?, message))
    }

    fn take(&mut self, message: ToReceiver) -> Result<Vec<Effect>, Refused> {
        if message == ToReceiver::Keep {
            return self.adopt();
        }
        let mut effects = self.open();
        let generation = self.generation;
        let Some(got) = message.seq() else {
            // The caller handles the first `Begin`, and a stream has only one.
            return Err(Refused::Order { expected: 0, got: 0 });
        };
        let filling = match &mut self.stage {
            Stage::Filling(filling) if filling.next == got && filling.end.is_none() => filling,
            Stage::Filling(filling) => return Err(Refused::Order { expected: filling.next, got }),
            // A sender that has received the answer sends nothing here.
            _ => return Err(Refused::Order { expected: 0, got }),
        };
        filling.next += 1;
        match message {
            ToReceiver::Items { seq, module, items } => {
                filling.announced(module)?;
                filling.came.add(module, &items);
                effects.push(Effect::Stage { generation, seq, module, items });
            }
            ToReceiver::Range { seq, module, range, tally } => {
                filling.announced(module)?;
                effects.push(Effect::Compare { generation, seq, module, range, tally });
            }
            ToReceiver::Replace { seq, module, range, items } => {
                filling.announced(module)?;
                filling.came.add(module, &items);
                effects.push(Effect::Replace { generation, seq, module, range, items });
            }
            ToReceiver::Module { seq, module, applied } => {
                filling.modules.insert(module.uid);
                effects.push(Effect::Open { generation, modules: vec![module], applied });
                // An empty page acknowledges the number in order.
                effects.push(Effect::Stage { generation, seq, module: module.uid, items: Vec::new() });
            }
            ToReceiver::End { seq, tallies, counts } => {
                if tallies != filling.came {
                    return Err(Refused::Tallies);
                }
                filling.end = Some(End { seq, tallies, counts });
                effects.extend(self.whole()?);
            }
            ToReceiver::Begin(_) | ToReceiver::Keep => {}
        }
        Ok(effects)
    }

    fn filling(&mut self, generation: u64) -> Option<&mut Filling> {
        match &mut self.stage {
            Stage::Filling(filling) if generation == self.generation => Some(filling),
            _ => None,
        }
    }

    fn staged(&mut self, generation: u64, seq: u64, taken: &Tallies) -> Vec<Effect> {
        let Some(filling) = self.filling(generation) else { return Vec::new() };
        filling.taken.add_all(taken);
        if !filling.is_done(seq) {
            return Vec::new();
        }
        let mut effects: Vec<Effect> = self.report(ToSender::Ack { seq }).into_iter().collect();
        match self.whole() {
            Ok(more) => effects.extend(more),
            Err(reason) => effects.extend(self.give_up(reason)),
        }
        effects
    }

    fn compared(&mut self, generation: u64, seq: u64, same: bool) -> Vec<Effect> {
        if same {
            return self.staged(generation, seq, &Tallies::default());
        }
        let Some(filling) = self.filling(generation) else { return Vec::new() };
        if !filling.is_done(seq) {
            return Vec::new();
        }
        self.report(ToSender::Differs { seq }).into_iter().collect()
    }

    /// Compare the stage with the items that were sent and mark it complete, if everything is staged.
    fn whole(&mut self) -> Result<Option<Effect>, Refused> {
        let generation = self.generation;
        let Some(filling) = self.filling(generation) else { return Ok(None) };
        let Some(end) = filling.end.as_ref().filter(|end| end.seq == filling.staged) else {
            return Ok(None);
        };
        if !filling.taken.same(&end.tallies) && !mutants::on(Mutant::IgnoreEndDigest) {
            return Err(Refused::Tallies);
        }
        Ok(Some(if end.counts.is_empty() {
            Effect::Complete(generation)
        } else {
            Effect::Count { generation, modules: end.counts.keys().copied().collect() }
        }))
    }

    fn counted(&mut self, generation: u64, counts: &BTreeMap<ModuleUid, u64>) -> Vec<Effect> {
        let Some(end) = self.filling(generation).and_then(|filling| filling.end.as_ref()) else {
            return Vec::new();
        };
        let wrong = end.counts.iter().find_map(|(module, sent)| {
            let staged = *counts.get(module)?;
            (staged != *sent).then_some(Refused::Count { module: *module, sent: *sent, staged })
        });
        match wrong {
            Some(reason) if !mutants::on(Mutant::IgnoreEndDigest) => self.give_up(reason),
            _ => vec![Effect::Complete(generation)],
        }
    }

    fn completed(&mut self, generation: u64) -> Vec<Effect> {
        let Some(filling) = self.filling(generation) else { return Vec::new() };
        let Some(End { seq, tallies, .. }) = &filling.end else { return Vec::new() };
        // A stage is marked complete only once it has every item that was sent, because it may be flipped from then
        // on.
        assert!(filling.is_whole());
        assert!(filling.taken.same(tallies) || mutants::on(Mutant::IgnoreEndDigest));
        let seq = *seq;
        self.taken = filling.came.total();
        self.stage = Stage::Complete;
        let asked = std::mem::take(&mut self.asked);
        let answer = if asked { self.accept(Have::All) } else { self.report(ToSender::Ended { seq }) };
        answer.into_iter().collect()
    }

    /// Drop the stage and refuse the stream. The sender starts again later.
    fn give_up(&mut self, reason: Refused) -> Vec<Effect> {
        // A complete stage may be flipped at any time, so only the log ends it.
        let drop = matches!(self.stage, Stage::Filling(_) | Stage::Kept);
        let mut effects = Vec::new();
        if drop {
            (self.stage, self.asked) = (Stage::Empty, false);
            effects.push(Effect::Drop);
        }
        self.fresh = None;
        if let Some(stream) = self.stream.take() {
            effects.push(Effect::Send(stream, ToSender::Refuse { reason }));
            effects.push(Effect::Close(stream));
        }
        effects
    }

    fn end(&mut self, fate: Fate) -> Vec<Effect> {
        if fate == Fate::Pending || self.is_finished() {
            return Vec::new();
        }
        let complete = self.stage == Stage::Complete;
        let mut effects = vec![match fate {
            Fate::Flipped => Effect::Promote { complete },
            _ => Effect::Drop,
        }];
        effects.extend(self.stream.take().map(Effect::Close));
        self.stage = Stage::Finished(fate);
        effects
    }
}
