//! What sender and receiver say to each other, on a bulk stream of their own.
//!
//! Each frame of the stream is one message. The sender's are numbered from 0 in the order of
//! the stream; the receiver acknowledges a number once everything up to it is as safe as its
//! module's storage makes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, ModuleUid, TransferId};
use crate::item::{Item, ItemAddr};
use crate::keyspace::PartitionId;

use super::{Tallies, Tally};

/// A module whose items come, and the release that wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRelease {
    /// Which.
    pub uid: ModuleUid,
    /// The release that the sender runs.
    pub version: u64,
}

/// The first message of every stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Which transfer: the receiver refuses one that is not pending by its log.
    pub transfer: TransferId,
    /// Of which partition.
    pub partition: PartitionId,
    /// The partition's version at the sender, which must be the receiver's (R2).
    pub version: u64,
    /// Index of the last log entry that the sender has applied: who is behind first catches up, so as to
    /// know every module of the list.
    pub applied: u64,
    /// The sender's process.
    pub boot: BootId,
    /// Counts the sender's streams of this transfer: with `boot`, the stream's name.
    pub attempt: u64,
    /// Modules whose items come; later ones are announced in the stream.
    pub modules: Vec<ModuleRelease>,
    /// How to begin.
    pub start: Start,
}

/// How a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// From the first item: when one comes, the receiver drops what it has staged.
    Fresh,
    /// The sender has all from `first` on and goes on where the receiver is.
    Resume {
        /// The first number that it can still send.
        first: u64,
    },
    /// The sender is sealed and knows no more than that: it asks whether the stage is complete.
    Ask,
}

/// From the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToReceiver {
    /// Once, first.
    Begin(Begin),
    /// A page, or the items of one write.
    Items {
        /// Its number.
        seq: u64,
        /// Whose.
        module: ModuleUid,
        /// In the order in which they are to be taken.
        items: Vec<Item>,
    },
    /// A module deployed since `Begin`.
    Module {
        /// Its number.
        seq: u64,
        /// Which.
        module: ModuleRelease,
        /// Index of the last log entry that the sender has applied.
        applied: u64,
    },
    /// No more comes: the sender is sealed.
    End {
        /// Its number.
        seq: u64,
        /// All that was sent in this attempt.
        tallies: Tallies,
        /// How many items the sealed vnodes have, of each module whose items the host keeps and so
        /// can count.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        counts: BTreeMap<ModuleUid, u64>,
    },
    /// Only to a receiver that has said that it has kept a stage, and before anything that is
    /// numbered: that stage is to be compared and goes on (R16).
    Keep,
    /// All items of a range of places, by their digest. A stage that has others in the range
    /// answers `Differs`.
    Range {
        /// Its number.
        seq: u64,
        /// Whose.
        module: ModuleUid,
        /// Which places.
        range: Range,
        /// Of the items that are not deleted.
        tally: Tally,
    },
    /// All items of a range of places: what the stage has there goes.
    Replace {
        /// Its number.
        seq: u64,
        /// Whose.
        module: ModuleUid,
        /// Which places.
        range: Range,
        /// All items there.
        items: Vec<Item>,
    },
}

/// A range of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Everything behind this, itself not; from the first where none.
    pub after: Option<ItemAddr>,
    /// Up to and with this; to the last where none.
    pub upto: Option<ItemAddr>,
}

impl ToReceiver {
    /// Its number, if it has one.
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
    /// Is the place in it?
    pub fn contains(&self, addr: &ItemAddr) -> bool {
        self.after.as_ref().is_none_or(|after| addr > after)
            && self.upto.as_ref().is_none_or(|upto| addr <= upto)
    }
}

/// From the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSender {
    /// Answers `Begin`.
    Accept {
        /// The receiver's process.
        boot: BootId,
        /// What of it is there.
        have: Have,
        /// There is also a stage of an earlier stream, which a sender that begins afresh may have
        /// compared instead of sending everything again (`Keep`). Without that it is dropped.
        #[serde(default)]
        kept: bool,
    },
    /// Everything up to `seq` is staged.
    Ack {
        /// The number.
        seq: u64,
    },
    /// `End` came, everything is staged, tallies are equal, and the stage is marked complete,
    /// durably.
    Ended {
        /// The number of `End`.
        seq: u64,
    },
    /// The receiver gives up this stream and has dropped its stage, if that was not complete.
    Refuse {
        /// Why.
        reason: Refused,
    },
    /// Acknowledges a `Range` in which the stage has other items.
    Differs {
        /// Its number.
        seq: u64,
    },
}

/// What a receiver has of a transfer when a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Have {
    /// Nothing that the stream could go on from.
    Nothing,
    /// Everything below this number: go on with it.
    Below(u64),
    /// All, complete and durable: there is nothing to send.
    All,
}

/// Why a receiver gives up a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// Not pending by the receiver's log, or it is not its taker.
    #[error("the transfer is not pending there")]
    NotPending,
    /// A module cannot be received: not loaded, or of a format that it does not read.
    #[error("module {module}: {why}")]
    Module {
        /// Which.
        module: ModuleUid,
        /// Why.
        why: String,
    },
    /// Storage or a guest failed to take items.
    #[error("items were not taken: {0}")]
    Stage(String),
    /// A number out of order, or a message out of place.
    #[error("the stream is out of order: expected {expected}, got {got}")]
    Order {
        /// The number expected.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// What came is not what was sent.
    #[error("what arrived is not what was sent")]
    Tallies,
    /// Too many transfers at once, or paused: later.
    #[error("busy with other transfers")]
    Busy,
    /// Another number of items is staged than there should be.
    #[error("module {module}: {staged} items are there and should be {sent}")]
    Count {
        /// Whose.
        module: ModuleUid,
        /// How many the sender has.
        sent: u64,
        /// How many arrived.
        staged: u64,
    },
}
