//! Raft's log and vote.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, ErrorSubject, ErrorVerb, RaftLogId, RaftLogReader, StorageIOError};
use tokio::time::timeout;

use super::{RaftStore, Record, StoreError, decode};
use crate::raft::{Entry, LogId, RaftTypes, StorageError, Vote};
use annulus_core::codec;
use annulus_core::ids::NodeId;
use annulus_core::mutants::{self, Mutant};
use annulus_data_dir::{Store, fatal};

/// Prefix of the entries' keys.
const LOG: u8 = b'l';

/// Longest wait of a purge for the snapshot that replaces the entries. It is many times the time that a large
/// state takes on a slow disk. After it the node ends, with its log complete.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(60);

fn key(index: u64) -> [u8; 9] {
    let mut key = [LOG; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

fn read_logs(error: StoreError) -> StorageError {
    StorageIOError::read_logs(&error).into()
}

/// Return the last entry in the log, or the last purged one.
pub(super) fn last_of(store: &RaftStore) -> Result<Option<LogId>, StoreError> {
    let purged: Option<LogId> = store.get(Record::Purged)?;
    let Some((_, bytes)) = store.space.last(key(0)..=key(u64::MAX))? else { return Ok(purged) };
    let entry: Entry = decode(&bytes, || "last log entry".into())?;
    // A crash during a purge may leave older entries.
    Ok(Some(entry.log_id).max(purged))
}

/// The log in the database. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    database: Store,
    store: RaftStore,
    /// This node, if it must not resume as leader.
    follows: Option<NodeId>,
}

impl LogStore {
    /// Open the log of a store.
    pub fn new(database: Store, store: RaftStore) -> Self {
        Self { database, store, follows: None }
    }

    /// Make this node not resume as leader. Raft would resume in the node's old term without asking any peer.
    /// An older copy of its disk would then assign indexes that are taken in that term to other entries.
    #[must_use]
    pub fn without_leading(self, me: NodeId) -> Self {
        Self { follows: Some(me), ..self }
    }

    /// Return the store of the log.
    #[cfg(test)]
    pub(super) fn store(&self) -> &RaftStore {
        &self.store
    }

    /// Pretend that a snapshot up to `last` is on disk. For tests of the log alone.
    #[doc(hidden)]
    pub fn suppose_snapshot(&self, last: LogId) {
        self.store.snapshot.synced.send_modify(|synced| synced.last = synced.last.max(Some(last)));
    }

    fn entries(&self, range: impl RangeBounds<u64>) -> Result<Vec<Entry>, StoreError> {
        let start = match range.start_bound() {
            Bound::Included(&index) => index,
            Bound::Excluded(&index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&index) => index.saturating_add(1),
            Bound::Excluded(&index) => index,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        let items = self.store.space.range(key(start)..key(end))?;
        items.iter().map(|(_, bytes)| decode(bytes, || "log entry".into())).collect()
    }

    /// Wait until the snapshot on disk has all entries up to this one. Raft hands a received snapshot to another
    /// task and purges at once; a node killed in between would have neither the entries nor the snapshot.
    async fn snapshot_of(&self, upto: LogId) -> Result<(), StorageError> {
        let mut synced = self.store.snapshot.synced.subscribe();
        let settled =
            synced.wait_for(|synced| synced.failed.is_some() || synced.last.is_some_and(|last| last >= upto));
        let why = match timeout(SNAPSHOT_WAIT, settled).await {
            Ok(Ok(synced)) => match &synced.failed {
                None => return Ok(()),
                Some(why) => why.clone(),
            },
            // This is unreachable, because the store has the sender.
            Ok(Err(_)) => "its task has ended".to_owned(),
            Err(_) => format!("it was not stored within {SNAPSHOT_WAIT:?}"),
        };
        let why = AnyError::error(format!("the snapshot up to entry {} is missing: {why}", upto.index));
        Err(StorageIOError::new(ErrorSubject::Snapshot(None), ErrorVerb::Write, why).into())
    }

    /// Remove entries in one batch.
    fn remove(&self, range: std::ops::RangeInclusive<u64>) -> Result<(), StoreError> {
        let mut batch = self.database.batch();
        for (key, _) in self.store.space.range(key(*range.start())..=key(*range.end()))? {
            batch.remove(&self.store.space, key);
        }
        batch.commit().unwrap_or_else(|error| fatal(&error));
        Ok(())
    }
}

impl RaftLogReader<RaftTypes> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.entries(range).map_err(read_logs)
    }
}

impl RaftLogStorage<RaftTypes> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<RaftTypes>, StorageError> {
        let last_purged_log_id: Option<LogId> = self.store.get(Record::Purged).map_err(read_logs)?;
        Ok(LogState { last_purged_log_id, last_log_id: last_of(&self.store).map_err(read_logs)? })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.store.put(Record::Vote, vote).map_err(|error| StorageIOError::write_vote(&error))?;
        self.store.mark.vote(*vote);
        self.store.syncer.sync().await;
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        // This is called first at a start. Raft relies on the vote and the entries that it finds and does not
        // write them again. A killed process may have passed them to the system only, and a loss of power
        // would then revoke a promise.
        self.store.syncer.sync().await;
        let vote = self.store.vote().map_err(|error| StorageIOError::read_vote(&error))?;
        let follows = |vote: &Vote| self.follows.is_some_and(|me| vote.leader_id.node_id == me.0);
        Ok(vote.map(|vote| if follows(&vote) { Vote { committed: false, ..vote } } else { vote }))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.store
            .put(Record::Committed, &committed)
            .map_err(|error| StorageIOError::write_logs(&error).into())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.store.get::<Option<LogId>>(Record::Committed).map_err(read_logs)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<RaftTypes>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut batch = self.database.batch();
        let mut last = None;
        for entry in entries {
            last = Some(entry.log_id);
            let bytes = codec::encode(&entry)
                .map_err(|error| StorageIOError::write_log_entry(*entry.get_log_id(), &error))?;
            batch.insert(&self.store.space, key(entry.log_id.index), bytes);
        }
        batch.commit().unwrap_or_else(|error| fatal(&error));
        if last.is_some() {
            self.store.mark.last(last);
        }
        self.store.syncer.after_sync(move || callback.log_io_completed(Ok(())));
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        // The removal is not synced by itself: after a crash, the leader removes the restored entries again,
        // and the journal keeps the removal before later appends. The mark is cut first, because the removed
        // entries were never committed.
        let before = since.index.saturating_sub(1)..since.index;
        let kept = self.entries(before).map_err(read_logs)?.last().map(|entry| entry.log_id);
        let purged: Option<LogId> = self.store.get(Record::Purged).map_err(read_logs)?;
        self.store.mark.cut(kept.max(purged));
        let noted = self.store.mark.write(self.store.mark.next());
        noted.map_err(|error| StorageIOError::write_logs(&error))?;
        self.remove(since.index..=u64::MAX).map_err(read_logs)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        if !mutants::on(Mutant::PurgeBeforeItsSnapshot) {
            self.snapshot_of(upto).await?;
        }
        // The record is written first, because the log is read correctly with the record alone.
        self.store.put(Record::Purged, &upto).map_err(|error| StorageIOError::write_logs(&error))?;
        self.remove(0..=upto.index).map_err(read_logs)
    }
}
