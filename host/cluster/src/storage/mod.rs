//! Raft's durable half: log, vote, snapshots, on the node's database; and, apart from it, the
//! copy of the committed state that the data path uses (R2).
//!
//! Everything of Raft lies in one keyspace for each lineage, `raft` for the first: `l` + index (u64, big-endian) -> entry;
//! `m` + name -> vote, committed, purged, snapshot. Appends and votes are synced before they are
//! answered; one thread syncs for all that waits (group commit), so Raft's own thread never
//! stands in an fsync. What Raft can find out again (what is committed, what is purged) is not
//! synced by itself. A database that cannot write ends the process.

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
    Read(#[from] Trouble),
    /// A record is not what it should be.
    #[error("record {record} in the database is corrupt: {source}")]
    Corrupt {
        /// Its name.
        record: String,
        /// What is wrong.
        source: CodecError,
    },
    /// The note beside the database cannot be kept.
    #[error("{path}: {source}")]
    Mark {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The database has forgotten what the node has promised its peers.
    #[error(
        "the database has lost {what}, which this node has promised its peers: it must not vote any more"
    )]
    Forgot {
        /// What it should have and has not.
        what: String,
    },
}

/// Raft's keyspace with typed records.
#[derive(Clone)]
pub struct RaftStore {
    space: Space,
    syncer: Syncer,
    mark: Arc<Mark>,
    snapshot: Arc<SnapshotPlace>,
}

/// How far the one stored snapshot reaches.
struct SnapshotPlace {
    /// In the database. Held while a snapshot is compared with what is there and written.
    written: Mutex<Option<LogId>>,
    /// On disk: what a purge waits for.
    synced: watch::Sender<Synced>,
}

/// What is known of the snapshots that are on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Synced {
    /// Last entry in the newest.
    last: Option<LogId>,
    /// Why one that Raft handed over could not be stored: nothing further comes.
    failed: Option<String>,
}

impl RaftStore {
    /// Opens that of a lineage, with a thread that syncs. `beside` is the directory of the note of
    /// what was promised, on the database's disk.
    ///
    /// # Errors
    /// Among others if the database has less than was promised.
    pub fn open(database: &Store, lineage: Lineage, beside: &Path) -> Result<Self, StoreError> {
        let name = raft_keyspace(lineage);
        let path = beside.join(format!("{name}.mark"));
        let mark = Mark::open(database.disk(), &path).map_err(|source| StoreError::Mark { path, source })?;
        let mark = Arc::new(mark);
        let space = database.space(&name)?;
        let syncer = Syncer::start(database.clone(), Some(mark.clone()));
        let snapshot = SnapshotPlace { written: Mutex::default(), synced: watch::Sender::default() };
        let store = Self { space, syncer, mark, snapshot: Arc::new(snapshot) };
        let last = store.get::<state_machine::Stored>(Record::Snapshot)?.and_then(|stored| stored.last());
        *store.snapshot.written.lock() = last;
        store.snapshot.synced.send_replace(Synced { last, failed: None });
        store.check_promises()?;
        Ok(store)
    }

    /// Compares what the database has with what was noted beside it.
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

    /// The last entry that this store stands for, in its log or in its snapshot: a crash may come
    /// after a snapshot was stored and before the log that it replaces was purged.
    pub(crate) fn last(&self) -> Result<Option<LogId>, StoreError> {
        Ok(log_store::last_of(self)?.max(*self.snapshot.written.lock()))
    }

    /// The last vote.
    pub(crate) fn vote(&self) -> Result<Option<Vote>, StoreError> {
        self.get(Record::Vote)
    }

    /// Index of the last entry, in the log or in the snapshot.
    #[cfg(test)]
    pub fn last_index(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.last()?.map(|last| last.index))
    }

    /// Is there nothing in it: neither a vote nor an entry?
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
