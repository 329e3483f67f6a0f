//! The input and output of a receiver.

use std::collections::BTreeMap;

use crate::handoff::message::{ModuleRelease, Range, Refused, ToReceiver, ToSender};
use crate::handoff::{Tallies, Tally};
use crate::ids::ModuleUid;
use crate::item::Item;
use crate::ring::Fate;

/// The number of an open stream, given by the driver. A later stream replaces the earlier ones.
pub type StreamId = u64;

/// Input of a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message has arrived. The first on a stream is a `Begin` for this transfer.
    Received(StreamId, ToReceiver),
    /// A stream has ended.
    Disconnected(StreamId),
    /// Every message up to this number is staged.
    Staged {
        /// The generation of the stage.
        generation: u64,
        /// The number of the last one.
        seq: u64,
        /// The items staged since the previous answer, counted where they were put in the stage.
        taken: Tallies,
    },
    /// Answers `Effect::Compare`, once every earlier message is staged.
    Compared {
        /// The generation of the stage.
        generation: u64,
        /// The number of the `Compare`.
        seq: u64,
        /// Whether the stage has exactly these items in the range.
        same: bool,
    },
    /// Answers `Effect::Count`.
    Counted {
        /// The generation of the stage.
        generation: u64,
        /// The number of items by module, of those modules that the stage can count.
        counts: BTreeMap<ModuleUid, u64>,
    },
    /// Answers `Effect::Complete`: the mark is durable.
    Completed(u64),
    /// Opening, staging or marking failed.
    Failed {
        /// The generation of the stage.
        generation: u64,
        /// The reason.
        reason: Refused,
    },
    /// The fate of this transfer by the committed log.
    Fate(Fate),
}

/// Output of a receiver, to be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Create an empty stage for items of these modules, once this node's log is applied up to `applied`, or add
    /// further modules to the stage of this generation. Answer only a failure.
    Open {
        /// The number of the stage, for the answers.
        generation: u64,
        /// The modules whose items follow.
        modules: Vec<ModuleRelease>,
        /// The log index to wait for.
        applied: u64,
    },
    /// Merge items into the stage, after all earlier ones. Answer `Staged` once they are as durable as the module's
    /// storage; one answer may cover several effects.
    Stage {
        /// The generation of the stage.
        generation: u64,
        /// The number, for the answer.
        seq: u64,
        /// The module that the items belong to.
        module: ModuleUid,
        /// The items, to be merged in order.
        items: Vec<Item>,
    },
    /// Continue with the kept stage as the one of this generation, for these modules; otherwise as `Open`. Only a
    /// receiver that keeps stages returns it.
    Adopt {
        /// The number of the stage, for the answers.
        generation: u64,
        /// The modules whose items are compared.
        modules: Vec<ModuleRelease>,
        /// The log index to wait for.
        applied: u64,
    },
    /// Compare the items of the stage in a range, after all earlier effects. Answer `Compared`.
    Compare {
        /// The generation of the stage.
        generation: u64,
        /// The number, for the answer.
        seq: u64,
        /// The module that the items belong to.
        module: ModuleUid,
        /// The range.
        range: Range,
        /// The tally of the items that the stage should have in the range.
        tally: Tally,
    },
    /// Replace the items of the stage in a range by these, after all earlier effects. Answer `Staged`.
    Replace {
        /// The generation of the stage.
        generation: u64,
        /// The number, for the answer.
        seq: u64,
        /// The module that the items belong to.
        module: ModuleUid,
        /// The range.
        range: Range,
        /// The items.
        items: Vec<Item>,
    },
    /// Count the items of these modules in the stage, after all earlier effects. Answer `Counted`.
    Count {
        /// The generation of the stage.
        generation: u64,
        /// The modules.
        modules: Vec<ModuleUid>,
    },
    /// Mark the stage complete, durably, after all earlier effects. Answer `Completed`.
    Complete(u64),
    /// Send on a stream. If it has ended, nothing is lost.
    Send(StreamId, ToSender),
    /// Close a stream after the messages sent on it.
    Close(StreamId),
    /// Drop the stage, if it exists.
    Drop,
    /// The transfer has flipped: the stage becomes the vnode's state (R7). If it is not complete, the store is
    /// `building` and the loss must be shown (R5).
    Promote {
        /// Whether everything is in the stage.
        complete: bool,
    },
}

/// The part of a transfer that a node finds on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Found {
    /// Nothing usable.
    #[default]
    Nothing,
    /// A stage that is not marked complete, which the driver can compare and adopt.
    Part,
    /// A stage that is marked complete.
    Complete,
}
