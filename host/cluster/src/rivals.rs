//! Nodes of another history of this cluster. One side of a partition removed the other, which was then
//! recovered.
//!
//! Neither side adopts the other's state: a majority agreed on the removal, the recovery is newer, and both
//! have acknowledged writes since. Both serve, and report each other until an operator discards one side.

use std::collections::HashMap;
use std::time::Duration;

use annulus_core::ids::NodeUid;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Time for which a meeting counts. It is longer than the longest pause between two dials of a member that
/// refuses.
const FRESH: Duration = Duration::from_secs(60);

/// The last meeting with each rival.
#[derive(Default)]
pub(super) struct Rivals {
    /// Bounded by the rivals that dial within [`FRESH`]: each is authenticated by this cluster's authority.
    met: Mutex<HashMap<NodeUid, Instant>>,
}

impl Rivals {
    /// Record that this node and a peer have refused each other.
    pub(super) fn note(&self, peer: NodeUid) {
        let mut met = self.met.lock();
        met.retain(|_, at| at.elapsed() < FRESH);
        if met.insert(peer, Instant::now()).is_none() {
            tracing::error!(
                %peer,
                "one side removed the other, which was recovered: the cluster has two histories, and both \
                 serve; `annulus status` says what can be done"
            );
        }
    }

    /// Return the rivals met recently, in order.
    pub(super) fn met(&self) -> Vec<NodeUid> {
        let mut met: Vec<NodeUid> =
            self.met.lock().iter().filter(|(_, at)| at.elapsed() < FRESH).map(|(uid, _)| *uid).collect();
        met.sort();
        met
    }
}
