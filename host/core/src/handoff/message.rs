//! The messages of sender and receiver, on a separate bulk stream.
//!
//! The sender's messages are numbered from 0 in the order of the stream. The receiver acknowledges a number once every
//! message up to it is as durable as the storage of its module.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, ModuleUid, TransferId};
use crate::item::{Item, ItemAddr};
use crate::keyspace::PartitionId;

use super::{Tallies, Tally};

/// A module whose items are sent, and the release that wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRelease {
    /// The module.
    pub uid: ModuleUid,
    /// The release that the sender runs.
    pub version: u64,
}

/// The first message of every stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The transfer. The receiver refuses one that is not pending by its log.
    pub transfer: TransferId,
    /// The partition.
    pub partition: PartitionId,
    /// The partition's version at the sender, which must be the receiver's (R2).
    pub version: u64,
    /// Index of the last log entry that the sender has applied. A receiver that is behind catches up first, so that
    /// it knows every module of the list.
    pub applied: u64,
    /// The id of the sender's process.
    pub boot: BootId,
    /// The number of the sender's attempt. `boot` and `attempt` identify the stream.
    pub attempt: u64,
    /// Modules whose items are sent. Later ones are announced in the stream.
    pub modules: Vec<ModuleRelease>,
    /// The position at which the stream starts.
    pub start: Start,
}

/// The position at which a stream starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// At the first item. When a message follows, the receiver drops what it has staged.
    Fresh,
    /// The sender has kept every message from `first` on and resumes at the receiver's position.
    Resume {
        /// The number of the first message that it can still send.
        first: u64,
    },
    /// The sender has restarted while sealed. It asks whether the stage is complete.
    Ask,
}

/// A message of the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToReceiver {
    /// The first message, once.
    Begin(Begin),
    /// A page, or the items of one write.
    Items {
        /// The number of the message.
        seq: u64,
        /// The module that the items belong to.
        module: ModuleUid,
        /// The items, in the order in which they are to be merged.
        items: Vec<Item>,
    },
    /// A module deployed since `Begin`.
    Module {
        /// The number of the message.
        seq: u64,
        /// The module.
        module: ModuleRelease,
        /// Index of the last log entry that the sender has applied.
        applied: u64,
    },
    /// The last message: the sender is sealed.
    End {
        /// The number of the message.
        seq: u64,
        /// The tallies of everything that was sent in this attempt.
        tallies: Tallies,
        /// The number of items of each sealed vnode whose items the host keeps.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        counts: BTreeMap<ModuleUid, u64>,
    },
    /// Compare the stage that the receiver has kept, and continue with it (R16). Before any numbered message.
    Keep,
    /// The digest of all items in a range of addresses. A receiver whose stage has other items there answers `Differs`.
    Range {
        /// The number of the message.
        seq: u64,
        /// The module that the items belong to.
        module: ModuleUid,
        /// The range.
        range: Range,
        /// The tally of the items that are not deleted.
        tally: Tally,
    },
    /// All items in a range of addresses. They replace those that the stage has there.
    Replace {
        /// The number of the message.
        seq: u64,
        /// The module that the items belong to.
        module: ModuleUid,
        /// The range.
        range: Range,
        /// All items in the range.
        items: Vec<Item>,
    },
}

/// A range of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The lower bound, exclusive; the range starts with the first item if `None`.
    pub after: Option<ItemAddr>,
    /// The upper bound, inclusive; the range ends with the last item if `None`.
    pub upto: Option<ItemAddr>,
}

impl ToReceiver {
    /// Return the number of the message, if it has one.
    pub fn seq(&self) -> Option<u64> {
        match self {
            Self::Items { seq, .. }
            | Self::Module { seq, .. }
            | Self::End { seq, .. }
            | Self::Range { seq, .. }
            | Self::Replace { seq, .. } => Some(*seq),
            Self::Begin(_) | Self::Keep => None,
        }
    }
}

impl Range {
    /// Return true if the address is in the range.
    pub fn contains(&self, addr: &ItemAddr) -> bool {
        self.after.as_ref().is_none_or(|after| addr > after)
            && self.upto.as_ref().is_none_or(|upto| addr <= upto)
    }
}

/// A message of the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSender {
    /// Answers `Begin`.
    Accept {
        /// The id of the receiver's process.
        boot: BootId,
        /// The part of the transfer that it has.
        have: Have,
        /// The receiver has also kept a stage of an earlier stream. A sender that starts from the first item may have
        /// that stage compared (`Keep`) instead of sending everything again; otherwise the stage is dropped.
        #[serde(default)]
        kept: bool,
    },
    /// Every message up to `seq` is staged.
    Ack {
        /// The number of the last one.
        seq: u64,
    },
    /// `End` has arrived, everything is staged, the tallies are equal, and the stage is durably marked complete.
    Ended {
        /// The number of `End`.
        seq: u64,
    },
    /// The receiver refuses this stream and has dropped its stage, unless that was complete.
    Refuse {
        /// The reason.
        reason: Refused,
    },
    /// Acknowledges a `Range` in which the stage has other items.
    Differs {
        /// The number of the `Range`.
        seq: u64,
    },
}

/// The part of a transfer that a receiver has when a stream starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Have {
    /// Nothing that the stream could resume from.
    Nothing,
    /// Every message below this number.
    Below(u64),
    /// Everything, complete and durable: the sender need not send anything.
    All,
}

/// A receiver's reason to refuse a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// The transfer is not pending by the receiver's log, or does not make the receiver the successor.
    #[error("the transfer is not pending at the receiver")]
    NotPending,
    /// A module cannot be received: not loaded, or of a format that it does not read.
    #[error("module {module}: {why}")]
    Module {
        /// The module.
        module: ModuleUid,
        /// The reason.
        why: String,
    },
    /// Storage or a guest failed to merge items.
    #[error("items were not staged: {0}")]
    Stage(String),
    /// A number out of order, or a message out of place.
    #[error("the stream is out of order: expected {expected}, got {got}")]
    Order {
        /// The number expected.
        expected: u64,
        /// The number that arrived.
        got: u64,
    },
    /// The items received differ from those that were sent.
    #[error("the items that arrived differ from those that were sent")]
    Tallies,
    /// The receiver already receives as many transfers as its limit allows, or is paused.
    #[error("the receiver is busy with other transfers")]
    Busy,
    /// The number of staged items differs from the sender's.
    #[error("module {module}: {staged} items are staged instead of {sent}")]
    Count {
        /// The module.
        module: ModuleUid,
        /// The number of items at the sender.
        sent: u64,
        /// The number of items in the stage.
        staged: u64,
    },
}
