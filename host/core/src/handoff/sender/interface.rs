//! The input and output of a sender.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::handoff::message::{ModuleRelease, ToReceiver, ToSender};
use crate::ids::{BootId, ModuleUid, TransferId};
use crate::item::Item;
use crate::keyspace::PartitionId;
use crate::ring::Fate;

/// Limits on the amount of unacknowledged data.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Unacknowledged bytes of items beyond which no page is read. The limit is large enough to keep the link busy
    /// for a round trip, and small enough that the items of a write do not wait long behind a window.
    pub window_bytes: usize,
    /// Unacknowledged bytes of items beyond which writes should wait ([`super::Sender::is_congested`]) and, without a
    /// link, the attempt is dropped instead of kept for a resume.
    pub backlog_bytes: usize,
    /// The number of unacknowledged messages at which the seal may start. These are writes: every page must be
    /// acknowledged before.
    pub seal_within: usize,
    /// The number of consecutive links that a sealed sender loses, or cannot open, before it has the transfer
    /// cancelled, so that a dead receiver does not block the partition. A cancel is safe at any time, because the log
    /// orders it with the flip. Its cost is the stream.
    pub sealed_losses: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window_bytes: 4 << 20, backlog_bytes: 32 << 20, seal_within: 4, sealed_losses: 2 }
    }
}

/// The task of a sender.
#[derive(Clone, Debug)]
pub struct Task {
    /// The transfer.
    pub transfer: TransferId,
    /// The partition to hand over.
    pub partition: PartitionId,
    /// The partition's version.
    pub version: u64,
    /// The id of this process.
    pub boot: BootId,
    /// The modules whose items move.
    pub modules: Vec<ModuleRelease>,
    /// Whether this node has found a seal for this transfer on its disk.
    pub sealed: bool,
}

/// Input of a sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The pacing allows the sender to start.
    Start,
    /// Answers `Effect::Connect`: the stream with this number is open.
    Connected(u64),
    /// The stream with this number could not be opened, or has ended.
    Disconnected(u64),
    /// A message has arrived on the stream with this number.
    Received(u64, ToSender),
    /// Answers `Effect::ReadPage`, at the commit point at which the page was read. Earlier writes are in the page or
    /// were forwarded before; later writes are forwarded later.
    Page {
        /// The attempt of the `ReadPage`.
        attempt: u64,
        /// The module of the `ReadPage`.
        module: ModuleUid,
        /// The items in key order.
        items: Vec<Item>,
        /// The token of the next page; `None` after the last.
        next: Option<Vec<u8>>,
    },
    /// A page could not be read.
    PageFailed {
        /// The attempt of the `ReadPage`.
        attempt: u64,
        /// The module of the `ReadPage`.
        module: ModuleUid,
        /// The reason.
        why: String,
    },
    /// The items of a committed write to this partition, at its commit point.
    Forward(ModuleUid, Vec<Item>),
    /// A module was deployed at this log index.
    Deployed(ModuleRelease, u64),
    /// A module was undeployed. Its remaining items are not read.
    Undeployed(ModuleUid),
    /// Whether the sender must hold, because it has no permit or is paused. A sender that holds reads no page and
    /// starts no seal. Its stream stays open and still carries the items of writes, so that they need not be kept. A
    /// partition that is sealed, or being sealed, is not held.
    Held(bool),
    /// Answers `Effect::Seal`: the seal is durable, requests are no longer answered, and every write has been
    /// forwarded.
    Sealed {
        /// The number of items of each module whose items the host keeps.
        counts: BTreeMap<ModuleUid, u64>,
    },
    /// Answers `Effect::Seal`: the seal is not possible now, and nothing has changed. For example, no leader was
    /// heard from lately.
    SealRefused,
    /// A vnode has lost its items or postpones the handoff, so the items sent no longer match it. Only another
    /// transfer can start again, so this one is cancelled.
    SourceBroken(String),
    /// A proposal has failed, or its outcome is unknown. It is repeated later; the log shows its success.
    NotProposed,
    /// The fate of this transfer by the committed log.
    Fate(Fate),
    /// Answers `Effect::Retry`.
    Retry,
}

/// Output of a sender, to be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Open a stream with this number to the receiver; answer `Connected` or `Disconnected`.
    Connect(u64),
    /// Send on this stream. If it has ended, nothing is lost.
    Send(u64, Arc<ToReceiver>),
    /// Close this stream; no answer.
    Disconnect(u64),
    /// Read a page of a module's items, sealed or not; answer `Page` or `PageFailed`.
    ReadPage {
        /// The attempt, for the answer.
        attempt: u64,
        /// The module to read.
        module: ModuleUid,
        /// The token of the page before; `None` for the first page.
        after: Option<Vec<u8>>,
    },
    /// Seal the partition (R1): if a leader was heard from lately, stop answering requests, forward all writes, make
    /// the seal durable and answer `Sealed`. Else answer `SealRefused`.
    Seal,
    /// Propose `Flip` of this transfer; answer `NotProposed` unless it was applied.
    ProposeFlip,
    /// Propose `Cancel` of this transfer; answer `NotProposed` unless it was applied.
    ProposeCancel,
    /// Send `Retry` after a pause.
    Retry,
    /// The log has ended the transfer. Flipped: answer `stale-ring`, delete the items, then the seal. Cancelled: lift
    /// the seal durably, if it exists, and serve.
    Finish(Fate),
}
