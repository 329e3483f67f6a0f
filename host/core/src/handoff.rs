//! Handoff of a partition from the node that owns it to its successor (DESIGN.md D9).
//!
//! Two state machines without I/O, [`sender::Sender`] and [`receiver::Receiver`], carry out one transfer between two
//! nodes. A driver feeds each with events (messages of the stream, answers of storage and guests, the committed log)
//! and carries out the returned effects in order. [`pacing::Pacing`] and [`limiter::SendLimiter`] decide when a
//! sender may work. Together with the driver the machines keep these invariants:
//!
//! - *One ordered stream* (R15): pages of items and the items of concurrent writes are sent in commit order. The actor
//!   hands over a page, and the items of each write, at its commit point; the sender numbers them in that order.
//! - *The seal* (R1): `Effect::Seal` follows once all but the last few messages are acknowledged. The driver lifts
//!   the seal only by `Effect::Finish`, which follows once the log shows that the transfer has flipped or was
//!   cancelled.
//! - *Staging* (R7): received items are promoted at the flip or dropped at a cancel, and never read before.
//! - *Resume* (R16): if both machines remember the stream (same boot id and attempt), it resumes. Otherwise it starts
//!   again. A receiver that has kept a stage, and whose driver can compare one ([`receiver::Receiver::keeping`]),
//!   then receives a digest per range, and items only of those ranges that differ. The host does not use this yet:
//!   its stages are in memory and end with their process.
//! - *Verified before the flip*: see below.
//! - *One stage per flip*: once a flip may have been proposed, nothing more is streamed under that transfer, because
//!   the flip could be committed while a second stage is half full. If the receiver has lost its stage, the transfer
//!   is cancelled and gets a new id.
//!
//! # Verification
//!
//! Before the flip the receiver compares, by module:
//!
//! - number, bytes and set digest of the items that came over the stream, with those that were sent;
//! - the same of the items that the stage took, counted where the vnode merges them;
//! - for a module whose items the host keeps, the number of items in the stage with that of the sealed vnode.
//!
//! If they differ, the receiver refuses: no flip is proposed, the error is shown and the transfer starts again. Both
//! sides keep the digests up to date as items pass, so the seal does not wait for them; the counts are known without
//! a scan.
//!
//! This detects an item that is lost, doubled or changed on the way, or sent to another module; and, where the host
//! keeps the items, a write that was never forwarded, if it made or removed an item. It does not detect a write that was
//! never forwarded and changed an item in place, nor the treatment of items by a guest that keeps them itself: only the
//! guest knows how many there should be after a merge, and it may encode the same state differently.
//!
//! # Holding
//!
//! A sender that must hold ([`sender::Event::Held`]) reads no page and starts no seal. Its stream stays open and
//! still carries writes. A seal that has started is never held. No seal starts before every page is acknowledged or,
//! where there is no page, before the receiver has shown that it is ready, because requests wait from the seal on.
//!
//! Only the driver waits. It reports each failure, and answers `Effect::Retry` with `Event::Retry` after a pause.

pub mod duties;
pub mod limiter;
pub mod message;
pub mod pacing;
mod rate;
pub mod receiver;
pub mod sender;
mod tally;

pub use tally::{Amounts, Tallies, Tally};

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a transfer, as `annulus transfers` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferState {
    /// The transfer waits for a permit or for the other node.
    Waiting,
    /// Items are being sent.
    Running,
    /// The owner answers no requests until the flip.
    Sealed,
    /// Flipped.
    Done,
    /// Cancelled, or about to be. The partition stays with its owner.
    Failed,
}

impl fmt::Display for TransferState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Sealed => "sealed",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}
