//! The taker's side of a handoff.

use std::collections::BTreeSet;

use crate::ids::{BootId, ModuleUid};
use crate::item::Item;
use crate::ring::Fate;

use super::message::{Begin, Have, ModuleRelease, Refused, Start, ToReceiver, ToSender};
use super::{Faults, Tallies, TransferState};

/// One opened stream, numbered by the driver; a later one replaces those before.
pub type StreamId = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message came. The first on a stream is a `Begin` for this transfer.
    Received(StreamId, ToReceiver),
    /// A stream is gone.
    Disconnected(StreamId),
    /// Everything up to and with this number is staged.
    Staged {
        /// The generation of the stage.
        generation: u64,
        /// The number.
        seq: u64,
    },
    /// Answers `Effect::Complete`: the mark is durable.
    Completed(u64),
    /// Opening, staging or marking failed.
    Failed {
        /// The generation of the stage.
        generation: u64,
        /// Why.
        reason: Refused,
    },
    /// What the committed log says of this transfer.
    Fate(Fate),
}

/// What the driver is to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make an empty stage for items of these modules, once the own log is applied up to
    /// `applied`; or have the one of this generation take further modules. Answer only a failure.
    Open {
        /// Counts stages: answers carry it.
        generation: u64,
        /// Whose items will come.
        modules: Vec<ModuleRelease>,
        /// Log index to wait for.
        applied: u64,
    },
    /// Put items in the stage, after all before. Answer `Staged` once it is as durable as the
    /// module's storage; one answer may stand for many.
    Stage {
        /// The generation of the stage.
        generation: u64,
        /// To answer with.
        seq: u64,
        /// Whose.
        module: ModuleUid,
        /// What, to be taken in order.
        items: Vec<Item>,
    },
    /// Mark the stage complete, durably. Answer `Completed`.
    Complete(u64),
    /// Send on a stream; if that is gone, nothing is lost.
    Send(StreamId, ToSender),
    /// Close a stream after what was sent on it.
    Close(StreamId),
    /// Drop the stage, whatever there is of it.
    Drop,
    /// The transfer flipped: the stage becomes the vnode's state (R7). Where it is not complete, the
    /// store is `building` and the loss is to be shown (R5).
    Promote {
        /// Is it all there?
        complete: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Empty,
    Filling(Filling),
    Complete,
    Finished(Fate),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Filling {
    /// The stream's name.
    from: (BootId, u64),
    modules: BTreeSet<ModuleUid>,
    /// The number that should come next.
    next: u64,
    /// Everything below is staged.
    staged: u64,
    tallies: Tallies,
    /// The number of `End`, when it came.
    end: Option<u64>,
}

/// Takes one partition over from one node by one transfer: see [`super`] for what it keeps
/// true, [`Event`] and [`Effect`] for what goes in and out.
#[derive(Clone, Debug)]
pub struct Receiver {
    boot: BootId,
    stage: Stage,
    generation: u64,
    stream: Option<StreamId>,
    /// What the stream began with, where that was `Fresh`, until more comes on it. Only that
    /// shows that the sender has had our answer: a stream that it has given up, and that is slow to
    /// arrive, must not cost the stage that a later one has filled.
    fresh: Option<Begin>,
    /// The sender asked whether the stage is complete, which is being marked.
    asked: bool,
    /// Items and bytes of a stage that is complete.
    taken: (u64, u64),
    #[doc(hidden)]
    pub faults: Faults,
}

impl Receiver {
    /// A receiver for one transfer. `complete`: this node has found a stage of it on its disk
    /// that is marked complete; one that is not, the driver has dropped.
    pub fn new(boot: BootId, complete: bool) -> Self {
        let stage = if complete { Stage::Complete } else { Stage::Empty };
        Self {
            boot,
            stage,
            generation: 0,
            stream: None,
            fresh: None,
            asked: false,
            taken: (0, 0),
            faults: Faults::default(),
        }
    }

    /// For `annulus transfers`.
    pub fn state(&self) -> TransferState {
        match self.stage {
            Stage::Empty => TransferState::Waiting,
            Stage::Filling(_) => TransferState::Running,
            Stage::Complete => TransferState::Sealed,
            Stage::Finished(Fate::Flipped) => TransferState::Done,
            Stage::Finished(_) => TransferState::Failed,
        }
    }

    /// Items and bytes that came so far.
    pub fn progress(&self) -> (u64, u64) {
        match &self.stage {
            Stage::Filling(filling) => filling.tallies.total(),
            _ => self.taken,
        }
    }

    /// Has the log ended this transfer? Then nothing more will happen.
    pub fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Finished(_))
    }

    /// Takes an event; the effects are to be carried out in order.
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
            Event::Staged { generation, seq } => self.staged(generation, seq),
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
                if self.faults.drop_at_begin {
                    effects.extend(self.open());
                }
                effects.extend(self.accept(Have::Below(0)));
            }
            (Stage::Complete, _) => effects.extend(self.accept(Have::All)),
            // What has come goes on being staged; the sender need not send it again.
            (Stage::Filling(filling), Start::Resume { first })
                if filling.from == from && first <= filling.next =>
            {
                effects.extend(self.accept(Have::Below(filling.next)));
            }
            // All is staged and the mark is on its way to the disk: the answer follows it.
            (Stage::Filling(filling), Start::Ask) if filling.is_whole() => self.asked = true,
            _ => effects.extend(self.accept(Have::Nothing)),
        }
        effects
    }

    /// Begins a new stage, if the stream is one that asked for it and has gone on.
    fn open(&mut self) -> Vec<Effect> {
        let Some(begin) = self.fresh.take() else { return Vec::new() };
        let mut effects = Vec::new();
        if self.stage != Stage::Empty {
            effects.push(Effect::Drop);
        }
        self.generation += 1;
        self.stage = Stage::Filling(Filling {
            from: (begin.boot, begin.attempt),
            modules: begin.modules.iter().map(|module| module.uid).collect(),
            next: 0,
            staged: 0,
            tallies: Tallies::default(),
            end: None,
        });
        let (generation, applied) = (self.generation, begin.applied);
        effects.push(Effect::Open { generation, modules: begin.modules, applied });
        effects
    }

    fn accept(&self, have: Have) -> Option<Effect> {
        self.send(ToSender::Accept { boot: self.boot, have })
    }

    /// Says how the stage gets on; not on a stream that is about to begin another.
    fn report(&self, message: ToSender) -> Option<Effect> {
        if self.fresh.is_some() { None } else { self.send(message) }
    }

    fn send(&self, message: ToSender) -> Option<Effect> {
        Some(Effect::Send(self.stream?, message))
    }

    fn take(&mut self, message: ToReceiver) -> Result<Vec<Effect>, Refused> {
        let mut effects = self.open();
        let generation = self.generation;
        let got = match &message {
            ToReceiver::Items { seq, .. } | ToReceiver::Module { seq, .. } | ToReceiver::End { seq, .. } => {
                *seq
            }
            ToReceiver::Begin(_) => 0,
        };
        let filling = match &mut self.stage {
            Stage::Filling(filling) if filling.next == got && filling.end.is_none() => filling,
            Stage::Filling(filling) => return Err(Refused::Order { expected: filling.next, got }),
            // A sender that was told so sends nothing: this is one that was not meant.
            _ => return Err(Refused::Order { expected: 0, got }),
        };
        filling.next += 1;
        match message {
            ToReceiver::Items { seq, module, items } => {
                if !filling.modules.contains(&module) {
                    return Err(Refused::Module { module, why: "it was not announced".into() });
                }
                filling.tallies.add(module, &items);
                effects.push(Effect::Stage { generation, seq, module, items });
            }
            ToReceiver::Module { seq, module, applied } => {
                filling.modules.insert(module.uid);
                effects.push(Effect::Open { generation, modules: vec![module], applied });
                // An empty page has the number staged in its turn.
                effects.push(Effect::Stage { generation, seq, module: module.uid, items: Vec::new() });
            }
            ToReceiver::End { seq, tallies } => {
                if tallies != filling.tallies {
                    return Err(Refused::Tallies);
                }
                filling.end = Some(seq);
                if filling.is_whole() {
                    effects.push(Effect::Complete(generation));
                }
            }
            // The caller has taken it; a stream has no second.
            ToReceiver::Begin(_) => {}
        }
        Ok(effects)
    }

    fn filling(&mut self, generation: u64) -> Option<&mut Filling> {
        match &mut self.stage {
            Stage::Filling(filling) if generation == self.generation => Some(filling),
            _ => None,
        }
    }

    fn staged(&mut self, generation: u64, seq: u64) -> Vec<Effect> {
        let Some(filling) = self.filling(generation) else { return Vec::new() };
        if seq < filling.staged || seq >= filling.next {
            return Vec::new();
        }
        filling.staged = seq + 1;
        let whole = filling.is_whole();
        let mut effects: Vec<Effect> = self.report(ToSender::Ack { seq }).into_iter().collect();
        if whole {
            effects.push(Effect::Complete(generation));
        }
        effects
    }

    fn completed(&mut self, generation: u64) -> Vec<Effect> {
        let Some(filling) = self.filling(generation) else { return Vec::new() };
        let Some(seq) = filling.end else { return Vec::new() };
        self.taken = filling.tallies.total();
        self.stage = Stage::Complete;
        let asked = std::mem::take(&mut self.asked);
        let answer = if asked { self.accept(Have::All) } else { self.report(ToSender::Ended { seq }) };
        answer.into_iter().collect()
    }

    /// Drops the stage and tells the sender, who begins again when it likes.
    fn give_up(&mut self, reason: Refused) -> Vec<Effect> {
        // A stage that is complete may be flipped at any moment: only the log ends it.
        let drop = matches!(self.stage, Stage::Filling(_));
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

impl Filling {
    /// The end has come, and everything before it is staged.
    fn is_whole(&self) -> bool {
        self.end == Some(self.staged)
    }
}
