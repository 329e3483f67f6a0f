//! Whole states from peers, for whoever cannot wait for Raft: one fetch per peer at a time, however many
//! ask, and one encoding per state at the peer, on a thread that Raft does not need.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_core::ids::NodeId;
use annulus_core::state::Lineage;
use tokio::time::{Instant, timeout_at};

use super::{Cluster, View};
use annulus_core::codec::{self, CodecError};

/// The fetches from each peer.
#[derive(Default)]
pub(super) struct Fetches {
    from: parking_lot::Mutex<HashMap<NodeId, Arc<Fetch>>>,
    encoded: tokio::sync::Mutex<Option<Encoded>>,
}

/// Fetches from one peer.
#[derive(Default)]
struct Fetch {
    /// Held by the one that is under way.
    turn: tokio::sync::Mutex<()>,
    /// How many have begun.
    begun: AtomicU64,
    /// Number of the newest that was answered.
    answered: AtomicU64,
}

/// A state as it is sent.
struct Encoded {
    lineage: Lineage,
    index: u64,
    bytes: Arc<Vec<u8>>,
}

impl Cluster {
    /// Takes a newer state from a peer, if it has one and answers in time. A fetch that somebody else
    /// begins after this call serves it as well.
    pub(super) async fn fetch_state_once(&self, peer: NodeId, deadline: Instant) {
        let fetch = self.inner.fetches.from.lock().entry(peer).or_default().clone();
        let before = fetch.begun.load(Ordering::Acquire);
        let Ok(_turn) = timeout_at(deadline, fetch.turn.lock()).await else { return };
        if fetch.answered.load(Ordering::Acquire) > before {
            return;
        }
        let number = fetch.begun.fetch_add(1, Ordering::AcqRel) + 1;
        if self.fetch_state(peer, deadline).await {
            fetch.answered.store(number, Ordering::Release);
        }
    }

    /// The answer to who asks for a state: that of this view, encoded once for all who ask.
    pub(super) async fn encoded_state(&self, view: Arc<View>) -> Result<Arc<Vec<u8>>, CodecError> {
        let mut last = self.inner.fetches.encoded.lock().await;
        if let Some(last) = &*last
            && (last.lineage, last.index) == (view.state.lineage, view.index())
        {
            return Ok(last.bytes.clone());
        }
        let (lineage, index) = (view.state.lineage, view.index());
        // A state of some 100 KB and more: not on Raft's thread.
        let there = view.clone();
        let encoded = annulus_ground::blocking(move || codec::encode(&Some(&there.state))).await;
        // An error: the runtime is ending, and has no thread for it any more.
        let bytes = Arc::new(encoded.unwrap_or_else(|_| codec::encode(&Some(&view.state)))?);
        *last = Some(Encoded { lineage, index, bytes: bytes.clone() });
        Ok(bytes)
    }
}
