//! The copy of the committed state that the data path uses, kept apart from Raft (R2).
//!
//! Ordered by (lineage, index): an older state never replaces a newer one. Not synced by itself:
//! a copy that a crash loses is learned again, and until then the one before it is true enough,
//! because every replica refuses what it no longer owns.

use annulus_core::state::{ClusterState, Lineage};
use fjall::{Database, Keyspace};

use super::{StoreError, decode};
use crate::codec;
use crate::data_dir::{fatal, keyspace_options};

const KEYSPACE: &str = "ring";
const KEY: &[u8] = b"state";

/// By this states of one cluster are ordered.
pub fn order(state: &ClusterState) -> (Lineage, u64) {
    (state.lineage, state.applied)
}

/// The durable copy.
#[derive(Clone)]
pub struct RingCopy {
    keyspace: Keyspace,
}

impl RingCopy {
    /// Opens it.
    pub fn open(database: &Database) -> Result<Self, StoreError> {
        Ok(Self { keyspace: database.keyspace(KEYSPACE, keyspace_options)? })
    }

    /// What was kept last.
    pub fn read(&self) -> Result<Option<ClusterState>, StoreError> {
        let Some(bytes) = self.keyspace.get(KEY)? else { return Ok(None) };
        decode(&bytes, || "copy of the ring".into()).map(Some)
    }

    /// Keeps a state. One writer only.
    pub fn write(&self, state: &ClusterState) {
        match codec::encode(state) {
            Ok(bytes) => self.keyspace.insert(KEY, bytes).unwrap_or_else(|error| fatal(&error)),
            Err(error) => tracing::error!(%error, "the state cannot be encoded; its copy stays old"),
        }
    }
}
