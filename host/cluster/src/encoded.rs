//! The committed state in its encoding for peers. It is encoded once for all peers that request it.

use std::sync::Arc;

use annulus_core::codec::{self, CodecError};
use annulus_core::state::Lineage;

use super::view::View;

/// The newest encoded state. Cheap to share; holds one state.
#[derive(Default)]
pub(super) struct EncodedState {
    newest: tokio::sync::Mutex<Option<Encoded>>,
}

struct Encoded {
    lineage: Lineage,
    index: u64,
    bytes: Arc<Vec<u8>>,
}

impl EncodedState {
    /// Return the reply to a request for the state of `view`.
    pub(super) async fn of(&self, view: Arc<View>) -> Result<Arc<Vec<u8>>, CodecError> {
        let mut newest = self.newest.lock().await;
        if let Some(newest) = &*newest
            && (newest.lineage, newest.index) == (view.state.lineage, view.index())
        {
            return Ok(newest.bytes.clone());
        }
        let (lineage, index) = (view.state.lineage, view.index());
        // A state may have 100 KB and more, which takes too long on Raft's thread.
        let there = view.clone();
        let encoded = annulus_ground::blocking(move || codec::encode(&Some(&there.state))).await;
        // An error means that the runtime is ending and no longer has another thread.
        let bytes = Arc::new(encoded.unwrap_or_else(|_| codec::encode(&Some(&view.state)))?);
        *newest = Some(Encoded { lineage, index, bytes: bytes.clone() });
        Ok(bytes)
    }
}
