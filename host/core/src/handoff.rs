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
//! - *Resume* (R16) only between two machines that both remember the stream: boot id and attempt
//!   name it. Otherwise the stream starts again.
//! - *One stage per flip*: once a flip may have been proposed, nothing is streamed under that
//!   transfer any more: it could commit while the second stage is half full. If the receiver has lost
//!   its stage, the transfer is cancelled, which gives it a new id.
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

pub use tally::{Tallies, Tally};

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

/// Rules to break, for the tests that show that the simulation notices.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub stream_again_under_a_flip: bool,
    pub drop_at_begin: bool,
    pub lose_forward_while_held: bool,
    pub ignore_end_digest: bool,
    pub believe_lost_answers: bool,
}
