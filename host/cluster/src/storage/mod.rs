//! Raft's log, vote and snapshots in the node's database, and, separate from them, the copy of the committed
//! state that the data path uses (R2).
//!
//! Each lineage has one keyspace, `raft` for the first: `l` + index (u64, big-endian) -> entry; `m` + name ->
//! vote, committed, purged, snapshot. Appends and votes are synced before they are acknowledged. One thread
//! syncs for all that wait (group commit), so Raft's own thread never blocks on an fsync. Records that Raft can
//! recompute (committed, purged) are not synced by themselves. A database that cannot write ends the process.

mod log_store;
mod mark;
mod ring_copy;
mod state_machine;
mod syncer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use annulus_core::state::Lineage;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use annulus_core::codec::{self, CodecError};
use annulus_data_dir::{Space, Store, Trouble, fatal};

pub use super::raft::{Entry, LogId, RaftTypes, StorageError, Vote};
pub use log_store::LogStore;
pub use mark::{Mark, Promised};
pub use ring_copy::{RingCopy, order};
pub use state_machine::{StateMachine, StateSink};
pub use syncer::Syncer;

/// Return the name of a lineage's keyspace. A recovery starts a new one (R19) and leaves the old one
/// unchanged, so that no acknowledged vote or entry is ever lost.
fn raft_keyspace(lineage: Lineage) -> String {
    if lineage == Lineage::default() {
        "raft".to_owned()
    } else {
        format!("raft-{}-{:016x}", lineage.number, lineage.id)
    }
}

/// The reason for which a store cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine failed to read.
    #[error("cannot read the database: {0}")]
    Read(#[from] Trouble),
    /// A record cannot be decoded.
    #[error("record {record} in the database is corrupt: {source}")]
    Corrupt {
        /// Name of the record.
        record: String,
        /// The cause.
        source: CodecError,
    },
    /// The mark beside the database cannot be read or written.
    #[error("{path}: {source}")]
    Mark {
        /// File of the mark.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The database has lost a vote or entries that the node has promised its peers.
    #[error("the database has lost {what}, which this node has promised its peers: it must no longer vote")]
    Forgot {
        /// Description of the loss.
        what: String,
    },
}

/// The keyspace of one lineage, with typed records. Clones share it.
#[derive(Clone)]
pub struct RaftStore {
    space: Space,
    syncer: Syncer,
    mark: Arc<Mark>,
    snapshot: Arc<SnapshotProgress>,
}

/// The last entry in the stored snapshot.
struct SnapshotProgress {
    /// The one in the database. Locked while a snapshot is compared with the stored one and written.
    written: Mutex<Option<LogId>>,
    /// The one on disk. A purge waits for it. Holds the newest value only.
    synced: watch::Sender<Synced>,
}

/// The snapshots that are on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Synced {
    /// The last entry in the newest one.
    last: Option<LogId>,
    /// The reason for which a snapshot of Raft could not be stored. No further one is stored after that.
    failed: Option<String>,
}

impl RaftStore {
    /// Open the store of a lineage, and start its syncing thread. `beside` is the directory of the mark, on the
    /// database's disk.
    ///
    /// # Errors
    /// Among others, if the database has less than was promised.
    pub fn open(database: &Store, lineage: Lineage, beside: &Path) -> Result<Self, StoreError> {
        let name = raft_keyspace(lineage);
        let path = beside.join(format!("{name}.mark"));
        let mark = Mark::open(database.disk(), &path).map_err(|source| StoreError::Mark { path, source })?;
        let mark = Arc::new(mark);
        let space = database.space(&name)?;
        let syncer = Syncer::start(database.clone(), Some(mark.clone()));
        let snapshot = SnapshotProgress { written: Mutex::default(), synced: watch::Sender::default() };
        let store = Self { space, syncer, mark, snapshot: Arc::new(snapshot) };
        let last = store.get::<state_machine::Stored>(Record::Snapshot)?.and_then(|stored| stored.last());
        *store.snapshot.written.lock() = last;
        store.snapshot.synced.send_replace(Synced { last, failed: None });
        store.check_promises()?;
        Ok(store)
    }

    /// Check that the database has everything that the mark says was promised.
    fn check_promises(&self) -> Result<(), StoreError> {
        let Promised { vote: noted_vote, last: noted_last, .. } = self.mark.promised();
        let vote: Option<Vote> = self.get(Record::Vote)?;
        if vote.is_none() && noted_vote.is_some()
            || vote.zip(noted_vote).is_some_and(|(has, noted)| has < noted)
        {
            return Err(StoreError::Forgot { what: "a vote".into() });
        }
        let last = self.last()?;
        if last < noted_last {
            let of = |last: Option<LogId>| last.map_or(0, |last| last.index);
            let what = format!("entries {} to {} of the cluster's log", of(last) + 1, of(noted_last));
            return Err(StoreError::Forgot { what });
        }
        if let Some(vote) = vote {
            self.mark.vote(vote);
        }
        self.mark.last(last);
        Ok(())
    }

    /// Return the last entry in the log or in the snapshot. A crash may occur after a snapshot is stored and
    /// before the log that it replaces is purged.
    pub(crate) fn last(&self) -> Result<Option<LogId>, StoreError> {
        Ok(log_store::last_of(self)?.max(*self.snapshot.written.lock()))
    }

    /// Return the stored vote.
    pub(crate) fn vote(&self) -> Result<Option<Vote>, StoreError> {
        self.get(Record::Vote)
    }

    /// Return the index of the last entry in the log or in the snapshot.
    #[cfg(test)]
    pub fn last_index(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.last()?.map(|last| last.index))
    }

    /// Return true if there is neither a vote nor an entry.
    pub fn is_pristine(&self) -> Result<bool, StoreError> {
        Ok(self.space.is_empty()?)
    }

    fn get<T: DeserializeOwned>(&self, record: Record) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.space.get(record.key())? else { return Ok(None) };
        decode(&bytes, || format!("{record:?}")).map(Some)
    }

    fn put<T: Serialize>(&self, record: Record, value: &T) -> Result<(), CodecError> {
        let bytes = codec::encode(value)?;
        self.space.insert(record.key(), bytes).unwrap_or_else(|error| fatal(&error));
        Ok(())
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8], name: impl FnOnce() -> String) -> Result<T, StoreError> {
    codec::decode(bytes).map_err(|source| StoreError::Corrupt { record: name(), source })
}

/// Records other than entries.
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
