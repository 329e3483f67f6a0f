//! The stream of a vnode's items to a handoff.

use annulus_core::contract::TransferKind;
use annulus_core::ids::ModuleUid;
use annulus_core::item::{Item, Page};
use tokio::sync::{mpsc, watch};

/// The handoff of a partition, as its vnodes see it.
#[derive(Clone)]
pub struct Outgoing {
    /// Purpose of the handoff.
    pub kind: TransferKind,
    /// Name of the node that receives the items.
    pub target: String,
    /// Events of all vnodes of the partition, those of each vnode in commit order.
    ///
    /// Unbounded, because a vnode must not wait for a handoff while it holds a committed write. The number of
    /// events is still bounded: the handoff has one page outstanding, and vnodes run no commands while
    /// `congested` is true, so at most one write of each vnode follows.
    pub sink: mpsc::UnboundedSender<StreamEvent>,
    /// True while the receiver is so far behind that commands must wait. Once the sender of this value is
    /// dropped, commands no longer wait.
    pub congested: watch::Receiver<bool>,
}

impl Outgoing {
    pub(super) fn is_congested(&self) -> bool {
        *self.congested.borrow() && self.congested.has_changed().is_ok()
    }
}

/// An event of a vnode for its handoff.
#[derive(Debug)]
pub enum StreamEvent {
    /// The page that was requested, at its point in the commit order (R15).
    Page {
        /// The vnode's module.
        module: ModuleUid,
        /// Number of the request.
        attempt: u64,
        /// The page, or the reason why it could not be read.
        page: Result<Page, String>,
    },
    /// The items of a committed write.
    Forward {
        /// The vnode's module.
        module: ModuleUid,
        /// The items, tombstones included.
        items: Vec<Item>,
    },
    /// The vnode is sealed: it answers no commands, and no forward follows.
    Sealed {
        /// The vnode's module.
        module: ModuleUid,
        /// Number of the seal request.
        round: u64,
        /// Number of items in host storage, `None` if the guest keeps the items.
        stored: Option<u64>,
    },
    /// The module refused the handoff, or the guest lost its items: the items sent so far no longer match the vnode's.
    Broken {
        /// The vnode's module.
        module: ModuleUid,
        /// Description for people.
        reason: String,
    },
}
