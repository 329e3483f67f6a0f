//! Raft's durable half: log, vote, snapshots, on the node's database; and, apart from it, the
//! copy of the committed state that the data path uses (R2).
//!
//! Everything of Raft lies in one keyspace for each lineage, `raft` for the first: `l` + index (u64, big-endian) -> entry;
//! `m` + name -> vote, committed, purged, snapshot. Appends and votes are synced before they are
//! answered; one thread syncs for all that waits (group commit), so Raft's own thread never
//! stands in an fsync. What Raft can find out again (what is committed, what is purged) is not
//! synced by itself. A database that cannot write ends the process.

mod log_store;
mod ring_copy;
mod state_machine;
mod syncer;

use annulus_core::state::Lineage;
use fjall::{Database, Keyspace};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, CodecError};
use crate::data_dir::{fatal, keyspace_options};

pub use log_store::LogStore;
pub use ring_copy::{RingCopy, order};
pub use state_machine::{StateMachine, StateSink};
pub use syncer::Syncer;

/// Raft's keyspace in a lineage. A recovery begins a new one (R19), the old one is left as it is: a
/// vote or an entry that was acknowledged in it is never forgotten.
fn raft_keyspace(lineage: Lineage) -> String {
    if lineage == Lineage::default() {
        "raft".to_owned()
    } else {
        format!("raft-{}-{:016x}", lineage.number, lineage.id)
    }
}

/// What is in the database and cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine failed to read.
    #[error("cannot read the database: {0}")]
    Read(#[from] fjall::Error),
    /// A record is not what it should be.
    #[error("record {record} in the database is corrupt: {source}")]
    Corrupt {
        /// Its name.
        record: String,
        /// What is wrong.
        source: CodecError,
    },
}

/// Raft's keyspace with typed records.
#[derive(Clone)]
pub struct RaftStore {
    keyspace: Keyspace,
    syncer: Syncer,
}

impl RaftStore {
    /// Opens that of a lineage, with a thread that syncs.
    pub fn open(database: &Database, lineage: Lineage) -> Result<Self, StoreError> {
        let keyspace = database.keyspace(&raft_keyspace(lineage), keyspace_options)?;
        Ok(Self { keyspace, syncer: Syncer::start(database.clone()) })
    }

    /// Is there nothing in it: neither a vote nor an entry?
    pub fn is_pristine(&self) -> Result<bool, StoreError> {
        Ok(self.keyspace.is_empty()?)
    }

    fn get<T: DeserializeOwned>(&self, record: Record) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.keyspace.get(record.key())? else { return Ok(None) };
        decode(&bytes, || format!("{record:?}")).map(Some)
    }

    fn put<T: Serialize>(&self, record: Record, value: &T) -> Result<(), CodecError> {
        let bytes = codec::encode(value)?;
        self.keyspace.insert(record.key(), bytes).unwrap_or_else(|error| fatal(&error));
        Ok(())
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8], name: impl FnOnce() -> String) -> Result<T, StoreError> {
    codec::decode(bytes).map_err(|source| StoreError::Corrupt { record: name(), source })
}

/// Names of single records.
#[derive(Clone, Copy, Debug)]
enum Record {
    Vote,
    Committed,
    Purged,
    Snapshot,
}

impl Record {
    fn key(self) -> &'static [u8] {
        match self {
            Self::Vote => b"mvote",
            Self::Committed => b"mcommitted",
            Self::Purged => b"mpurged",
            Self::Snapshot => b"msnapshot",
        }
    }
}

#[cfg(test)]
mod tests;
