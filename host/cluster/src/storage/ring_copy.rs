//! The durable copy of the committed state for the data path, kept apart from Raft (R2).
//!
//! States are ordered by (lineage, index), and an older one never replaces a newer one. Two generations, each
//! with a checksum, are written alternately: if one is damaged, the previous one is used. An older state is
//! safe, because every replica refuses requests for partitions that it no longer owns, and newer states are
//! learned again. For the same reason a copy is not synced by itself.

use std::sync::Arc;

use annulus_core::state::{ClusterState, Lineage};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::{StoreError, decode};
use annulus_core::codec::{self, CodecError};
use annulus_data_dir::{Space, Store, fatal};

const KEYSPACE: &str = "ring";
const GENERATIONS: [&[u8]; 2] = [b"state-a", b"state-b"];
/// Key of the only copy, without a checksum, that earlier builds wrote.
const SINGLE: &[u8] = b"state";
const CHECKSUM: usize = 32;

/// Return the order of a state among the states of one cluster.
pub fn order(state: &ClusterState) -> (Lineage, u64) {
    (state.lineage, state.applied)
}

/// Order of the last state written, and the generation for the next one.
type Last = (Option<(Lineage, u64)>, usize);

/// The durable copy. Clones share it.
#[derive(Clone)]
pub struct RingCopy {
    space: Space,
    last: Arc<Mutex<Last>>,
}

impl RingCopy {
    /// Open the copy of a database.
    pub fn open(database: &Store) -> Result<Self, StoreError> {
        Ok(Self { space: database.space(KEYSPACE)?, last: Arc::default() })
    }

    /// Read the newest undamaged generation; `None` if none was ever written.
    ///
    /// # Errors
    /// If there are generations and all of them are damaged.
    pub fn read(&self) -> Result<Option<ClusterState>, StoreError> {
        let mut newest: Option<(usize, ClusterState)> = None;
        let mut damage = None;
        for (at, key) in GENERATIONS.iter().enumerate() {
            match self.generation(key) {
                Ok(Some(state)) => {
                    if newest.as_ref().is_none_or(|(_, other)| order(other) < order(&state)) {
                        newest = Some((at, state));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "one of the two copies of the ring is damaged");
                    damage = Some(error);
                }
            }
        }
        if let Some((at, state)) = newest {
            *self.last.lock() = (Some(order(&state)), 1 - at);
            return Ok(Some(state));
        }
        if let Some(bytes) = self.space.get(SINGLE)? {
            return decode(&bytes, || "copy of the ring".into()).map(Some);
        }
        damage.map_or(Ok(None), Err)
    }

    fn generation(&self, key: &[u8]) -> Result<Option<ClusterState>, StoreError> {
        let Some(bytes) = self.space.get(key)? else { return Ok(None) };
        let name = || format!("copy of the ring {}", String::from_utf8_lossy(key));
        let whole = bytes.split_at_checked(CHECKSUM).filter(|(sum, body)| *sum == &Sha256::digest(body)[..]);
        match whole {
            Some((_, body)) => decode(body, name).map(Some),
            None => Err(StoreError::Corrupt { record: name(), source: CodecError::checksum() }),
        }
    }

    /// Write a state, if it is newer than the last one written.
    pub fn write(&self, state: &ClusterState) {
        let mut last = self.last.lock();
        if last.0.is_some_and(|kept| kept >= order(state)) {
            return;
        }
        match codec::encode(state) {
            Ok(body) => {
                let record = [Sha256::digest(&body).as_slice(), &body].concat();
                let insert = self.space.insert(GENERATIONS[last.1], record);
                insert.unwrap_or_else(|error| fatal(&error));
                *last = (Some(order(state)), 1 - last.1);
            }
            Err(error) => tracing::error!(%error, "the state cannot be encoded; its copy stays old"),
        }
    }
}
