//! What a sender is told, and what it tells its driver.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::handoff::message::{ModuleRelease, ToReceiver, ToSender};
use crate::ids::{BootId, ModuleUid, TransferId};
use crate::item::Item;
use crate::keyspace::PartitionId;
use crate::ring::Fate;

/// How much may be under way.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of items sent and not acknowledged beyond which no page is read: enough to keep
    /// the link busy for a round trip, little enough that a write's items wait briefly behind.
    pub window_bytes: usize,
    /// The same beyond which the driver should hold writes back ([`super::Sender::is_congested`]), and
    /// beyond which, with no link, what is kept for a resume is let go.
    pub backlog_bytes: usize,
    /// Messages not acknowledged at which the seal is worth its pause: writes, for every page must
    /// be acknowledged before it.
    pub seal_within: usize,
    /// How many links in a row a sealed sender loses, or cannot have, before it has the transfer
    /// cancelled, so that a receiver that is gone does not hold up the partition. A cancel is safe at
    /// any time: whether it or the flip came first, the log says. What it costs is the stream.
    pub sealed_losses: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window_bytes: 4 << 20, backlog_bytes: 32 << 20, seal_within: 4, sealed_losses: 2 }
    }
}

/// What a sender is for.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which transfer.
    pub transfer: TransferId,
    /// Of which partition.
    pub partition: PartitionId,
    /// The partition's version.
    pub version: u64,
    /// This process.
    pub boot: BootId,
    /// Modules whose items are to move.
    pub modules: Vec<ModuleRelease>,
    /// Whether this node has found its seal for this transfer on its disk.
    pub sealed: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its turn has come (limits on concurrent handoffs are the driver's).
    Start,
    /// Answers `Effect::Connect`: the stream of that number is open.
    Connected(u64),
    /// That stream could not be had, or is gone.
    Disconnected(u64),
    /// A message came on that stream.
    Received(u64, ToSender),
    /// Answers `Effect::ReadPage`, at the commit point at which it was read: what was written
    /// before is in it or was forwarded before, what is written later is forwarded later.
    Page {
        /// Of the `ReadPage`.
        attempt: u64,
        /// Of the `ReadPage`.
        module: ModuleUid,
        /// In key order.
        items: Vec<Item>,
        /// The token for the page after it; none after the last.
        next: Option<Vec<u8>>,
    },
    /// A page could not be read.
    PageFailed {
        /// Of the `ReadPage`.
        attempt: u64,
        /// Of the `ReadPage`.
        module: ModuleUid,
        /// Why.
        why: String,
    },
    /// The items of a committed write of this partition, at its commit point.
    Forward(ModuleUid, Vec<Item>),
    /// A module was deployed, with the log index at which.
    Deployed(ModuleRelease, u64),
    /// A module is no more: what it has left is not read.
    Undeployed(ModuleUid),
    /// Whether it has to hold: it has no turn, or is paused. Until it is told otherwise no page is
    /// read and no seal begun; the stream stays, and the items of writes go on flowing in it, so
    /// that nothing has to be kept for later. One that is sealed, or being sealed, is not held up.
    Held(bool),
    /// Answers `Effect::Seal`: durable, and nothing is answered any more; every write that was
    /// has been forwarded.
    Sealed {
        /// How many items there are now, of each module whose items the host keeps.
        counts: BTreeMap<ModuleUid, u64>,
    },
    /// Answers `Effect::Seal`: not now, nothing has changed (no leader was heard from lately).
    SealRefused,
    /// A vnode has lost its items or puts the handoff off: the items sent no longer match it. Only another
    /// transfer can begin again, so this one is cancelled.
    SourceBroken(String),
    /// A proposal has failed, or nobody knows: asked for again later. (One that succeeded is
    /// learned from the log.)
    NotProposed,
    /// What the committed log says of this transfer.
    Fate(Fate),
    /// Answers `Effect::Retry`.
    Retry,
}

/// What the driver is to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Open a stream of this number to the receiver; answer `Connected` or `Disconnected`.
    Connect(u64),
    /// Send on that stream; if it is gone, nothing is lost.
    Send(u64, Arc<ToReceiver>),
    /// Close that stream; no answer.
    Disconnect(u64),
    /// Read a page of a module's items; answer `Page` or `PageFailed`. Sealed or not.
    ReadPage {
        /// To answer with.
        attempt: u64,
        /// Whose.
        module: ModuleUid,
        /// The token of the page before.
        after: Option<Vec<u8>>,
    },
    /// Having heard from a leader lately, stop answering for the partition, forward what has
    /// been written, mark the seal durably, and answer `Sealed`; else `SealRefused` (R1).
    Seal,
    /// Propose `Flip` of this transfer; answer `NotProposed` unless it was applied.
    ProposeFlip,
    /// Propose `Cancel` of this transfer; answer `NotProposed` unless it was applied.
    ProposeCancel,
    /// Send `Retry` after a pause.
    Retry,
    /// The log has ended the transfer. Flipped: answer `stale-ring`, delete the items, then the seal's
    /// mark. Cancelled: lift the seal, if there is one, durably, and serve.
    Finish(Fate),
}
