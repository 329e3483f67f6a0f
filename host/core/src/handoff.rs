//! Handoff of a partition from the node that holds it to the one that will (DESIGN.md D9).
//!
//! Two state machines without I/O, [`sender::Sender`] and [`receiver::Receiver`], for one pair of
//! nodes and one transfer. A driver feeds each with events (what came over the stream, what storage
//! and guests answered, what the committed log says) and carries out the effects that come
//! back, in their order. What they keep true, together with the driver:
//!
//! - *One ordered stream* (R15): pages of items and the items of writes that happen meanwhile, in
//!   commit order. The actor hands over a page, and the items of each write, at its commit
//!   point; the machine numbers them in the order in which they come.
//! - *The seal* (R1): `Effect::Seal` comes once everything but the last few frames is
//!   acknowledged. The driver lifts it only by `Effect::Finish`, which comes only when the log
//!   says that the transfer flipped or was cancelled.
//! - *Staging* (R7): what comes in is promoted at the flip and dropped at a cancel, never read
//!   before.
//! - *Resume* (R16): two machines that both remember the stream, named by boot id and attempt, go on
//!   where it was. Otherwise it begins again; and if the receiver has kept a stage of before, and its
//!   driver can compare one ([`receiver::Receiver::keeping`]), every page goes as the digest of its
//!   range and only ranges that differ are sent. That comes to bear where something is left on both
//!   sides: not yet in the host, whose stages are in memory and end with their process.
//! - *Nothing unseen before the flip*: see below.
//! - *One stage per flip*: once a flip may have been proposed, nothing is streamed under that
//!   transfer any more: it could commit while the second stage is half full. If the receiver has lost
//!   its stage, the transfer is cancelled, which gives it a new id.
//!
//! # What is compared at the end
//!
//! Before the flip the receiver compares, by module: number, bytes and set digest of the items that
//! came over the stream, with those that were sent; the same of the items that the stage says that
//! it took, counted where the vnode merges them; and, of modules whose items the host keeps, how many
//! there are in the stage now with how many the sealed vnode has. A difference is refused: no flip,
//! the error is shown, the transfer begins again. Both sides keep the digests up as items pass, so
//! the seal is no longer for them; the counts are known without looking at an item.
//!
//! That shows an item lost, doubled or changed on the way, in a queue, by a wrong module; and, where
//! the host keeps the items, a write that was never forwarded, if it made or removed an item. It
//! does not show a write that was never forwarded and changed an item in place, nor what a guest
//! that keeps its items does with them once it has taken them: only it knows how many there should
//! be after a merge, and may write the same state in other bytes.
//!
//! # Pauses and turns
//!
//! One that has to hold ([`sender::Event::Held`]) reads no page and begins no seal; its stream stays,
//! and writes go on flowing in it. A seal that has begun is never held: it ends, one way or the other.
//! No seal begins before every page is acknowledged, and, where there is none, before the receiver
//! has shown that it is ready: from the seal on requests wait.
//!
//! Every wait is the driver's: whatever it waits for, it says so when that fails, and
//! `Effect::Retry` asks for `Event::Retry` after a pause.

pub mod duties;
pub mod message;
pub mod pairs;
pub mod rate;
pub mod receiver;
pub mod sender;
mod tally;

pub use tally::{Amounts, Tallies, Tally};

use serde::{Deserialize, Serialize};

/// Where a transfer is, in the words of `annulus transfers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferState {
    /// For its turn, or for the other side.
    Waiting,
    /// Items flow.
    Running,
    /// The holder answers nothing until the flip.
    Sealed,
    /// Flipped.
    Done,
    /// Given up; the partition stays where it was.
    Failed,
}
