//! The control messages of a vnode and their results.

use std::sync::Arc;

use annulus_core::contract::Rejection;
use annulus_core::handoff::Tally;
use annulus_core::item::{Budget, Item, Page, RangeDigest};
use annulus_core::request::RequestError;
use tokio::sync::oneshot;

use super::measure::PageSize;
use super::outgoing::Outgoing;
use super::release::Release;

/// Receives an answer. It may run on the thread that commits to disk, and must not block.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// A message of the host for a vnode. It is handled before any waiting command.
pub enum Control {
    /// A handoff starts: forward the items of every write to it.
    StartOutgoing(Outgoing),
    /// Put a page of the fold into the stream of the handoff.
    ReadPage {
        /// Number of the request, repeated in the event.
        attempt: u64,
        /// Resume token from the previous page.
        after: Option<Vec<u8>>,
    },
    /// The handoff is over.
    EndOutgoing {
        /// True if the other node owns the items now, false if the handoff was cancelled.
        finished: bool,
    },
    /// Answer no commands: they wait in the mailbox (R1). The vnode confirms to the handoff with this round, after
    /// all forwards.
    Seal(u64),
    /// Lift the seal.
    Unseal,
    /// Merge items of another replica, then answer.
    Items(Vec<Item>, oneshot::Sender<Result<Taken, String>>),
    /// Merge items of another replica of a module with several. The answer comes once they are durable.
    Merge(Vec<Item>, Answer<Result<(), String>>),
    /// Tell the state of a key to another replica.
    TellKey {
        /// The routing key.
        key: Vec<u8>,
        /// True if the items are wanted, and not only their digest.
        with_items: bool,
        /// Receives the state once it is durable; `None` if the store is not complete.
        answer: Answer<Result<Option<KeyState>, String>>,
    },
    /// Tell a page of all items to another replica.
    TellPage {
        /// Resume token from the previous page.
        after: Option<Vec<u8>>,
        /// The budget of the page.
        limit: Budget,
        /// True if the page is wanted although the store is not complete.
        of_any: bool,
        /// Receives the page once it is durable, and whether the store is complete; `None` if it is not and that was not
        /// wanted.
        answer: Answer<Result<Option<(Page, bool)>, String>>,
    },
    /// The store is complete: it may answer.
    Complete,
    /// Answer at once. The answer shows that the vnode handles its messages.
    Ping(oneshot::Sender<()>),
    /// Count the items.
    Count(oneshot::Sender<Count>),
    /// Switch to this release and carry the items over.
    Swap(Arc<Release>, oneshot::Sender<Result<SwapReport, String>>),
    /// Measure a page of the fold.
    Measure {
        /// Resume token from the previous page.
        after: Option<Vec<u8>>,
        /// Receives the size, or the reason why the page could not be read.
        answer: oneshot::Sender<Result<PageSize, String>>,
    },
    /// Keep the items and answer every command with this error from now on: after a recovery of the cluster, whose
    /// state does not include these items, another node owns the partition.
    SetAside(RequestError),
    /// End the vnode.
    End {
        /// The answer to all commands in the mailbox.
        error: RequestError,
        /// True if another node owns the items permanently: the guest drops those that it keeps, and the master drops the
        /// store. Otherwise the vnode closes its store in order.
        delete: bool,
        /// Answered when the vnode has ended, behind the close of its store.
        done: oneshot::Sender<()>,
    },
}

/// The result of merging items.
#[derive(Debug, Default)]
pub struct Taken {
    /// All items of the message, counted as they were merged.
    pub tally: Tally,
    /// The items that the vnode rejected.
    pub rejections: Vec<Rejection>,
}

/// The items of one key at a replica.
#[derive(Debug)]
pub struct KeyState {
    /// The digest of all of them.
    pub digest: RangeDigest,
    /// The items, tombstones included, if they were wanted.
    pub items: Vec<Item>,
}

/// The number of items of a vnode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Exact, from host storage.
    Stored(u64),
    /// Approximate, as the guest reports it.
    Said(u64),
    /// The guest failed to count.
    Unknown,
}

/// The result of a swap of one vnode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapReport {
    /// Number of items carried over.
    pub items: u64,
    /// Longest time that a command can have waited for the swap, in microseconds.
    pub stall_us: u64,
    /// True if the old guest trapped during the swap and the items in its memory are lost.
    pub lost: bool,
}
