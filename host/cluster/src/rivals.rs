//! Nodes of another history of this cluster: one side of a cut removed the other, which was recovered.
//!
//! Neither side takes anything over from the other: the removal was agreed on by a majority, the recovery is
//! newer, and both have acknowledged writes since. Both serve, and say so until an operator gives one up.

use std::collections::HashMap;
use std::time::Duration;

use annulus_core::ids::NodeUid;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a meeting counts. Longer than the longest pause between two dials of a member that refuses.
const FRESH: Duration = Duration::from_secs(60);

/// When each was met last.
#[derive(Default)]
pub(super) struct Rivals {
    met: Mutex<HashMap<NodeUid, Instant>>,
}

impl Rivals {
    /// One of the two has just refused the other.
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

    /// Those met of late.
    pub(super) fn met(&self) -> Vec<NodeUid> {
        let mut met: Vec<NodeUid> =
            self.met.lock().iter().filter(|(_, at)| at.elapsed() < FRESH).map(|(uid, _)| *uid).collect();
        met.sort();
        met
    }
}
