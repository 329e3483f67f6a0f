//! The end of this node's part in the cluster, and its reason.

use tokio::sync::watch;

/// The reason for which a node is no longer part of its cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The node left, or was removed.
    #[error("this node was removed from the cluster")]
    Removed,
    /// Peers have seen a newer state of this node's disk.
    #[error(
        "this data directory is not the newest that this node had: {0}. It was restored from an older copy, or \
         runs twice; it may have forgotten a vote or an entry that it acknowledged, so it takes no part. \
         Nothing was changed. Start it from the newest directory, or say `annulus start --rejoin-as-new` to set \
         aside what is here and begin a new node (first `annulus remove` the old one, or `replace` it)"
    )]
    Stale(String),
    /// The control plane cannot continue.
    #[error("the control plane failed: {0}")]
    Failed(String),
}

/// Signals to the rest of the node that its part in the cluster has ended. Clones share it.
#[derive(Clone)]
pub(super) struct EndSignal(watch::Sender<Option<Ended>>);

impl EndSignal {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Set the reason. Only the first one counts.
    pub(super) fn raise(&self, reason: Ended) {
        self.0.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason);
            }
            first
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Ended>> {
        self.0.subscribe()
    }
}
