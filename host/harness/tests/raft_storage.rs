//! Raft's storage on a disk that crashes: openraft's own test suite, and processes that die at any operation.

#![allow(clippy::unwrap_used)]

mod founding;
mod raft {
    pub mod book;
    pub mod life;
}

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

use annulus_cluster::storage::{
    Entry, LogId, LogStore, RaftStore, RaftTypes, StateMachine, StorageError, StoreError, Vote,
};
use annulus_core::mutants::{self, Mutant};
use annulus_core::state::Lineage;
use annulus_data_dir::open_database;
use annulus_ground::ScopeId;
use annulus_harness::disk::{Crash, MemoryDisk};
use annulus_harness::{Settings, Simulation};
use openraft::RaftLogReader;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::testing::{StoreBuilder, Suite};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use raft::book::Book;
use raft::life::{Seen, life};

/// Directory of the node.
const NODE: &str = "/node";

/// Number of processes that use one disk, one after another.
const LIVES: u64 = 12;

/// The result of a seed.
#[derive(Default)]
struct Run {
    /// Operations at which processes died.
    deaths: BTreeSet<String>,
    operations: u64,
    trace: u64,
}

/// Run one process after another on one disk. Each dies at a random operation, or at its end.
fn run(seed: u64) -> Result<Run, String> {
    let simulation = Simulation::new(seed, Settings::default());
    let disk = MemoryDisk::new(simulation.world().stream("disk"));
    let mut choices = simulation.world().stream("crashes");
    let book = Arc::new(Mutex::new(Book::default()));
    let mut run = Run::default();
    for number in 0..LIVES {
        let until = disk.operations() + choices.random_range(1..150);
        disk.die_at(Some(until));
        let seen = Seen { disk: disk.clone(), book: book.clone() };
        let scope = simulation.scope(ScopeId(number));
        let choices_of_life = simulation.world().stream(&format!("life {number}"));
        let lived = simulation.live(&scope, life(seen, choices_of_life));
        match lived {
            None => run.deaths.extend(disk.died()),
            Some(done) => done.map_err(|why| format!("seed {seed}, life {number}: {why}"))?,
        }
        disk.fill(false);
        disk.crash(if choices.random() { Crash::Killed } else { Crash::PowerLoss });
    }
    run.operations = disk.operations();
    run.trace = simulation.world().trace();
    Ok(run)
}

#[test]
fn raft_storage_keeps_its_promises_after_a_crash_at_any_operation() {
    let mut deaths = BTreeSet::new();
    for seed in 0..400 {
        deaths.extend(run(seed).unwrap().deaths);
    }
    // The test would cover less than it claims if no process died at one of these.
    for what in
        ["write to /node/db", "begin to persist", "end to persist", "write /node/raft.mark", "sync /node"]
    {
        assert!(deaths.iter().any(|death| death.contains(what)), "no life died at: {what} of {deaths:?}");
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let of = |seed| run(seed).map(|run| (run.operations, run.trace)).unwrap();
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

#[test]
fn a_purge_before_its_snapshot_is_detected() {
    let fault = Some(Mutant::PurgeBeforeItsSnapshot);
    let seen = mutants::during(fault, || (0..400).find_map(|seed| run(seed).err()));
    assert!(seen.is_some(), "none of 400 seeds detects it");
}

/// Return a disk with a database in which a process has made promises.
fn lived() -> (Simulation, MemoryDisk) {
    let simulation = Simulation::new(1, Settings::default());
    let disk = MemoryDisk::new(simulation.world().stream("disk"));
    let seen = Seen { disk: disk.clone(), book: Default::default() };
    let choices = simulation.world().stream("life");
    simulation.live(&simulation.scope(ScopeId(0)), life(seen, choices)).unwrap().unwrap();
    (simulation, disk)
}

fn opened(simulation: &Simulation, disk: &MemoryDisk, database: &str) -> Result<(), StoreError> {
    let (disk, path) = (disk.disk(), Path::new(NODE).join(database));
    let open = async move {
        RaftStore::open(&disk.database(&path).unwrap(), Lineage::default(), Path::new(NODE)).map(drop)
    };
    simulation.live(&simulation.scope(ScopeId(1)), open).unwrap()
}

#[test]
fn a_database_older_than_its_mark_is_refused() {
    let (simulation, disk) = lived();
    disk.crash(Crash::PowerLoss);
    opened(&simulation, &disk, "db").unwrap();
    disk.crash(Crash::Killed);
    let error = opened(&simulation, &disk, "other").unwrap_err();
    assert!(matches!(&error, StoreError::Forgot { what } if what == "a vote"), "{error}");
}

/// The log as openraft's suite uses it: it is purged without a snapshot, which Raft never does.
struct SuiteLog(LogStore);

impl RaftLogReader<RaftTypes> for SuiteLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.0.try_get_log_entries(range).await
    }
}

impl RaftLogStorage<RaftTypes> for SuiteLog {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<RaftTypes>, StorageError> {
        self.0.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.0.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.0.save_vote(vote).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.0.read_vote().await
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<RaftTypes>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        self.0.append(entries, callback).await
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        self.0.truncate(since).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.0.suppose_snapshot(upto);
        self.0.purge(upto).await
    }
}

/// Builds the storage with fjall, in a directory that is removed with the guard.
struct OnFiles;

impl StoreBuilder<RaftTypes, SuiteLog, StateMachine, tempfile::TempDir> for OnFiles {
    async fn build(&self) -> Result<(tempfile::TempDir, SuiteLog, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let database = open_database(&dir.path().join("db")).unwrap();
        let store = RaftStore::open(&database, Lineage::default(), dir.path()).unwrap();
        let machine = StateMachine::open(store.clone(), Arc::new(raft::book::State::default())).unwrap();
        Ok((dir, SuiteLog(LogStore::new(database, store)), machine))
    }
}

struct InMemory;

impl StoreBuilder<RaftTypes, SuiteLog, StateMachine, ()> for InMemory {
    async fn build(&self) -> Result<((), SuiteLog, StateMachine), StorageError> {
        let disk = MemoryDisk::new(SmallRng::seed_from_u64(1)).disk();
        let (log, machine) = raft::life::open(&disk, Arc::new(raft::book::State::default())).unwrap();
        Ok(((), SuiteLog(log), machine))
    }
}

#[test]
fn openrafts_suite_passes_on_files() {
    Suite::test_all(OnFiles).unwrap();
}

#[test]
fn openrafts_suite_passes_in_memory() {
    Suite::test_all(InMemory).unwrap();
}
