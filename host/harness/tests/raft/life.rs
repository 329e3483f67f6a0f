//! A process that uses Raft's storage in the way openraft does.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annulus_cluster::storage::{LogId, LogStore, RaftStore, StateMachine, StateSink, StorageError, Vote};
use annulus_core::codec;
use annulus_core::state::Lineage;
use annulus_data_dir::{DataDir, Disk};
use annulus_harness::disk::MemoryDisk;
use futures_util::FutureExt;
use openraft::storage::{
    RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine, SnapshotMeta,
};
use openraft::{Membership, RaftLogReader, StorageHelper, StoredMembership};
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::book::{Book, Found, State, machine_of};
use crate::NODE;

/// Data that a process shares with the ones after it.
pub struct Seen {
    pub disk: MemoryDisk,
    pub book: Arc<Mutex<Book>>,
}

const STEPS: u32 = 40;

/// Open Raft's storage as a node does.
pub fn open(disk: &Disk, sink: Arc<dyn StateSink>) -> Result<(LogStore, StateMachine), String> {
    let dir = Path::new(NODE);
    let data = DataDir::lock_on(disk, dir).map_err(|error| error.to_string())?;
    let database = data.database().map_err(|error| error.to_string())?;
    // A node syncs its directory when it counts a start, before it makes promises.
    disk.sync_dir(dir).map_err(|error| error.to_string())?;
    let store = RaftStore::open(&database, Lineage::default(), dir).map_err(|error| error.to_string())?;
    let machine = StateMachine::open(store.clone(), sink).map_err(|error| error.to_string())?;
    Ok((LogStore::new(database, store), machine))
}

struct Life {
    seen: Seen,
    log: LogStore,
    machine: StateMachine,
    choices: SmallRng,
    /// The newest snapshot that was built and up to which the log is not purged yet.
    built: Arc<Mutex<Option<LogId>>>,
    /// Last purged entry.
    purged: Option<LogId>,
}

/// Start, check the disk, and take random steps until enough are done or the disk is full.
pub async fn life(seen: Seen, mut choices: SmallRng) -> Result<(), String> {
    let state = Arc::new(State::default());
    let (mut log, mut machine) = open(&seen.disk.disk(), state.clone())?;
    let said = |error: StorageError| error.to_string();
    let start = StorageHelper::new(&mut log, &mut machine).get_initial_state().await.map_err(said)?;
    let at = log.get_log_state().await.map_err(said)?;
    let found = Found {
        vote: log.read_vote().await.map_err(said)?,
        purged: at.last_purged_log_id,
        last: at.last_log_id,
        snapshot: machine.get_current_snapshot().await.map_err(said)?.and_then(|it| it.meta.last_log_id),
        entries: log.try_get_log_entries(..).await.map_err(said)?,
        applied: machine.applied_state().await.map_err(said)?.0,
        state: state.0.lock().clone(),
    };
    drop(start);
    seen.book.lock().check(found)?;
    let full_at = if choices.random_range(0..10) == 0 { choices.random_range(0..STEPS) } else { STEPS };
    let mut life = Life { seen, log, machine, choices, built: Arc::default(), purged: at.last_purged_log_id };
    for step in 0..STEPS {
        life.seen.disk.fill(step >= full_at);
        if let Err(error) = life.step().await {
            // Raft stops as a whole after a storage error.
            return if step >= full_at { Ok(()) } else { Err(said(error)) };
        }
    }
    Ok(())
}

impl Life {
    fn term(&self) -> u64 {
        self.seen.book.lock().vote.0.map_or(0, |vote| vote.leader_id.term)
    }

    async fn step(&mut self) -> Result<(), StorageError> {
        match self.choices.random_range(0..12) {
            0 => self.vote().await,
            1 => self.replace().await,
            2..=3 => self.commit().await,
            4 => self.build().await,
            5 => self.purge_built().await,
            6 if self.choices.random_range(0..3) == 0 => self.install().await,
            7 => {
                tokio::time::sleep(Duration::from_millis(self.choices.random_range(0..100))).await;
                Ok(())
            }
            _ => self.append().await,
        }
    }

    async fn vote(&mut self) -> Result<(), StorageError> {
        let vote = Vote::new_committed(self.term() + 1, 1);
        self.seen.book.lock().vote.1 = Some(vote);
        self.log.save_vote(&vote).await?;
        self.seen.book.lock().vote.0 = Some(vote);
        Ok(())
    }

    /// Append entries. The write happens at once and the acknowledgement comes later, as in Raft.
    async fn append(&mut self) -> Result<(), StorageError> {
        if self.term() == 0 {
            return self.vote().await;
        }
        let count = self.choices.random_range(1..5);
        let term = self.term();
        let ids = self.seen.book.lock().ids(term, count);
        let Some(last) = ids.last().copied() else { return Ok(()) };
        self.seen.book.lock().write(ids.clone());
        let (mut log, book) = (self.log.clone(), self.seen.book.clone());
        let entries: Vec<_> = ids.into_iter().map(super::book::entry).collect();
        let mut append = Box::pin(async move { log.blocking_append(entries).await });
        if let Some(done) = (&mut append).now_or_never() {
            done?;
            book.lock().ack(last);
            return Ok(());
        }
        annulus_ground::spawn(async move {
            if append.await.is_ok() {
                book.lock().ack(last);
            }
        });
        Ok(())
    }

    /// Replace uncommitted entries by those of a leader of another term.
    async fn replace(&mut self) -> Result<(), StorageError> {
        self.vote().await?;
        let since = {
            let mut book = self.seen.book.lock();
            let first = book.committed.map_or(0, |committed| committed + 1);
            if first >= book.next() {
                return Ok(());
            }
            let index = self.choices.random_range(first..book.next());
            let since = book.log[&index].log_id;
            book.cut(index);
            since
        };
        self.log.truncate(since).await?;
        if self.choices.random_range(0..4) == 0 { Ok(()) } else { self.append().await }
    }

    async fn commit(&mut self) -> Result<(), StorageError> {
        let entries = {
            let mut book = self.seen.book.lock();
            let from = book.committed.map_or(0, |committed| committed + 1);
            if from >= book.next() {
                return Ok(());
            }
            let upto = self.choices.random_range(from..book.next());
            book.committed = Some(upto);
            book.log.range(from..=upto).map(|(_, entry)| entry.clone()).collect::<Vec<_>>()
        };
        self.log.save_committed(entries.last().map(|entry| entry.log_id)).await?;
        self.machine.apply(entries).await.map(drop)
    }

    /// Build a snapshot in another task.
    async fn build(&mut self) -> Result<(), StorageError> {
        if self.seen.book.lock().committed.is_none() {
            return Ok(());
        }
        let mut builder = self.machine.get_snapshot_builder().await;
        let (book, built) = (self.seen.book.clone(), self.built.clone());
        annulus_ground::spawn(async move {
            if let Ok(snapshot) = builder.build_snapshot().await {
                let last = snapshot.meta.last_log_id;
                let mut book = book.lock();
                book.snapshot = book.snapshot.max(last);
                let mut built = built.lock();
                *built = built.max(last);
            }
        });
        Ok(())
    }

    async fn purge_built(&mut self) -> Result<(), StorageError> {
        let Some(built) = self.built.lock().take() else { return Ok(()) };
        let upto = {
            let behind = self.choices.random_range(0..4);
            let book = self.seen.book.lock();
            let Some(entry) = built.index.checked_sub(behind).and_then(|index| book.log.get(&index)) else {
                return Ok(());
            };
            entry.log_id
        };
        self.purge(upto).await
    }

    /// Purge the log, but no entry twice, as in Raft.
    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        if self.purged >= Some(upto) {
            return Ok(());
        }
        self.purged = Some(upto);
        self.log.purge(upto).await
    }

    /// Install a snapshot from the leader that goes beyond the end of the log. Raft passes it to another task
    /// and purges the log at once.
    async fn install(&mut self) -> Result<(), StorageError> {
        self.vote().await?;
        let ids = {
            let mut book = self.seen.book.lock();
            let count = self.choices.random_range(3..30);
            let ids = book.ids(book.vote.0.map_or(1, |vote| vote.leader_id.term), count);
            for id in &ids {
                book.log.insert(id.index, super::book::entry(*id));
            }
            ids
        };
        let Some(upto) = ids.last().copied() else { return Ok(()) };
        let machine = machine_of(&self.seen.book.lock().log, upto.index);
        let data = codec::encode(&machine).expect("a state can be encoded");
        let first = Membership::new(vec![std::collections::BTreeSet::from([1])], ());
        let meta = SnapshotMeta {
            last_log_id: Some(upto),
            last_membership: StoredMembership::new(Some(openraft::testing::log_id(0, 0, 0)), first),
            snapshot_id: upto.to_string(),
        };
        let mut receiver = self.machine.clone();
        let book = self.seen.book.clone();
        let install = annulus_ground::spawn(async move {
            receiver.install_snapshot(&meta, Box::new(Cursor::new(data))).await?;
            let mut book = book.lock();
            book.snapshot = book.snapshot.max(Some(upto));
            Ok::<(), StorageError>(())
        });
        self.purge(upto).await?;
        install.await.expect("storing a snapshot does not panic")?;
        self.seen.book.lock().committed = Some(upto.index);
        Ok(())
    }
}
