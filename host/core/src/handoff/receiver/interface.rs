//! What a receiver is told, and what it tells its driver.

use std::collections::BTreeMap;

use crate::handoff::message::{ModuleRelease, Range, Refused, ToReceiver, ToSender};
use crate::handoff::{Tallies, Tally};
use crate::ids::ModuleUid;
use crate::item::Item;
use crate::ring::Fate;

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
        /// What was staged since the answer before, counted where it was put in the stage.
        taken: Tallies,
    },
    /// Answers `Effect::Compare`, with everything before it staged.
    Compared {
        /// The generation of the stage.
        generation: u64,
        /// The number.
        seq: u64,
        /// Has the stage exactly these items there?
        same: bool,
    },
    /// Answers `Effect::Count`: how many items the stage has of those modules of which it can tell.
    Counted {
        /// The generation of the stage.
        generation: u64,
        /// By module.
        counts: BTreeMap<ModuleUid, u64>,
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
    /// Go on with the stage that is there as one of this generation, for these modules; then as
    /// `Open`. Only where `Found::Part` or what the receiver keeps anyway allows it.
    Adopt {
        /// Counts stages: answers carry it.
        generation: u64,
        /// Whose items are compared.
        modules: Vec<ModuleRelease>,
        /// Log index to wait for.
        applied: u64,
    },
    /// Compare what the stage has in a range, after all before. Answer `Compared`.
    Compare {
        /// The generation of the stage.
        generation: u64,
        /// To answer with.
        seq: u64,
        /// Whose.
        module: ModuleUid,
        /// Where.
        range: Range,
        /// Of the items that should be there.
        tally: Tally,
    },
    /// Let go of what the stage has in a range, after all before, and put these items there.
    /// Answer `Staged`.
    Replace {
        /// The generation of the stage.
        generation: u64,
        /// To answer with.
        seq: u64,
        /// Whose.
        module: ModuleUid,
        /// Where.
        range: Range,
        /// What.
        items: Vec<Item>,
    },
    /// Count the items of these modules in the stage, after all before. Answer `Counted`.
    Count {
        /// The generation of the stage.
        generation: u64,
        /// Of which modules.
        modules: Vec<ModuleUid>,
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

/// What a node finds on its disk of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or nothing that can be used.
    #[default]
    Nothing,
    /// A stage that is not marked complete, which the driver can compare and adopt.
    Part,
    /// A stage that is marked complete.
    Complete,
}
