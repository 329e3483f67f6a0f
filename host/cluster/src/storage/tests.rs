//! The store over restarts. openraft's own suite runs over it in the harness, on every engine.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{ClusterId, NodeId, NodeUid};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{ClusterState, Command, Lineage, Member, MemberStatus};
use futures_util::FutureExt;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::testing::log_id;
use openraft::{EntryPayload, RaftLogReader, StorageHelper};

use super::*;
use annulus_data_dir::open_database;

/// Longest wait of any test here.
const LIMIT: Duration = Duration::from_secs(60);

/// A sink that keeps the last state.
#[derive(Default)]
struct Last(parking_lot::Mutex<Option<ClusterState>>);

impl StateSink for Last {
    fn committed(&self, state: &ClusterState) {
        *self.0.lock() = Some(state.clone());
    }
}

fn open(path: &std::path::Path) -> (LogStore, StateMachine, Arc<Last>) {
    let database = open_database(&path.join("db")).unwrap();
    let store = RaftStore::open(&database, Lineage::default(), path).unwrap();
    let last = Arc::new(Last::default());
    (LogStore::new(database, store.clone()), StateMachine::open(store, last.clone()).unwrap(), last)
}

fn found() -> Command {
    let founder = Member {
        id: NodeId(0),
        uid: NodeUid([1; 16]),
        name: "a@h".into(),
        listen: "127.0.0.1:1".into(),
        http: String::new(),
        zone: None,
        weight: 1,
        status: MemberStatus::Member,
        staged: false,
        banned: false,
        key: None,
    };
    Command::Found {
        cluster: ClusterId([2; 16]),
        ring_size: RingSize::try_from(8).unwrap(),
        width: 3,
        founder,
        authority: "ca".into(),
        authority_key: "key".into(),
        level: annulus_core::version::LEVEL,
    }
}

fn entry(index: u64, command: Command) -> Entry {
    Entry { log_id: log_id(1, 0, index), payload: EntryPayload::Normal(command) }
}

/// Reopen a database after its last handles are dropped. The engine's threads may end a moment later.
fn reopen(path: &std::path::Path) -> (LogStore, StateMachine, Arc<Last>) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while let Err(error) = open_database(&path.join("db")) {
        assert!(std::time::Instant::now() < deadline, "{error}");
        std::thread::yield_now();
    }
    open(path)
}

#[tokio::test]
async fn vote_log_and_marks_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote::new(3, 7);
    {
        let (mut log, _machine, _) = open(dir.path());
        log.save_vote(&vote).await.unwrap();
        log.blocking_append((0..10).map(|index| entry(index, found()))).await.unwrap();
        log.save_committed(Some(log_id(1, 0, 6))).await.unwrap();
        log.truncate(log_id(1, 0, 8)).await.unwrap();
        log.suppose_snapshot(log_id(1, 0, 2));
        log.purge(log_id(1, 0, 2)).await.unwrap();
    }
    let (mut log, _machine, _) = reopen(dir.path());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 0, 6)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 0, 2)), Some(log_id(1, 0, 7))));
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
}

#[tokio::test]
async fn a_snapshot_brings_the_state_back_and_tells_the_sink() {
    let dir = tempfile::tempdir().unwrap();
    let state = {
        let (_log, mut machine, last) = open(dir.path());
        machine.apply([entry(2, found())]).await.unwrap();
        machine.build_snapshot().await.unwrap();
        last.0.lock().clone().unwrap()
    };
    assert_eq!(state.applied, 2);
    let (_log, mut machine, last) = reopen(dir.path());
    assert_eq!(last.0.lock().as_ref(), Some(&state));
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 0, 2)));
}

/// Return a snapshot as a leader sends it, built by another node at this entry.
async fn sent_snapshot(index: u64) -> Snapshot<RaftTypes> {
    let dir = tempfile::tempdir().unwrap();
    let (_log, mut machine, _) = open(dir.path());
    machine.apply([entry(index, found())]).await.unwrap();
    machine.build_snapshot().await.unwrap()
}

/// Reopen after a crash and start as Raft does. Return the entries, and the last applied one.
async fn restarted(path: &std::path::Path) -> (Vec<u64>, Option<u64>) {
    let (mut log, mut machine, _) = reopen(path);
    StorageHelper::new(&mut log, &mut machine).get_initial_state().await.unwrap();
    let entries = log.try_get_log_entries(..).await.unwrap();
    let entries = entries.iter().map(|entry| entry.log_id.index).collect();
    (entries, machine.applied_state().await.unwrap().0.map(|last| last.index))
}

#[tokio::test]
async fn a_node_killed_at_any_step_of_installing_a_snapshot_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = sent_snapshot(4000).await;
    let upto = snapshot.meta.last_log_id.unwrap();
    {
        let (mut log, machine, _) = open(dir.path());
        log.save_vote(&Vote::new_committed(1, 0)).await.unwrap();
        log.blocking_append((0..10).map(|index| entry(index, found()))).await.unwrap();
        log.save_committed(Some(log_id(1, 0, 9))).await.unwrap();
        // As in Raft, another task stores the snapshot, and the purge comes at once. The node is killed
        // before the other task runs.
        assert!(log.purge(upto).now_or_never().is_none(), "the purge does not wait for the snapshot");
        drop(machine);
    }
    assert_eq!(restarted(dir.path()).await, ((0..10).collect(), Some(9)));
    {
        let (mut log, mut machine, _) = reopen(dir.path());
        let purge = tokio::spawn(async move { log.purge(upto).await.map(|()| log) });
        tokio::task::yield_now().await;
        assert!(!purge.is_finished());
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await.unwrap();
        let mut log = tokio::time::timeout(LIMIT, purge).await.unwrap().unwrap().unwrap();
        let state = log.get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(upto), Some(upto)));
    }
    assert_eq!(restarted(dir.path()).await, (vec![], Some(4000)));
}

#[tokio::test]
async fn a_node_killed_after_the_snapshot_and_before_the_purge_has_forgotten_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = sent_snapshot(4000).await;
    {
        let (mut log, mut machine, _) = open(dir.path());
        log.blocking_append((0..10).map(|index| entry(index, found()))).await.unwrap();
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    }
    {
        let (log, _machine, _) = reopen(dir.path());
        // It has everything that it has acknowledged to its leader.
        assert_eq!(log.store().last_index().unwrap(), Some(4000));
    }
    assert_eq!(restarted(dir.path()).await, (vec![], Some(4000)));
}

#[tokio::test]
async fn an_older_snapshot_never_replaces_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = sent_snapshot(4000).await;
    let (_log, mut machine, _) = open(dir.path());
    machine.apply([entry(9, found())]).await.unwrap();
    // A build copies the state. Then the received snapshot is stored, and after it the built one.
    let builder = machine.get_snapshot_builder().await;
    let built = builder.copy().unwrap();
    machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    builder.keep(built.0, built.1).await.unwrap();
    let stored = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(stored.meta, snapshot.meta);
}

#[tokio::test]
async fn a_purge_ends_with_an_error_where_the_snapshot_cannot_be_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut snapshot = sent_snapshot(4000).await;
    let upto = snapshot.meta.last_log_id.unwrap();
    let (mut log, mut machine, _) = open(dir.path());
    log.blocking_append((0..10).map(|index| entry(index, found()))).await.unwrap();
    snapshot.snapshot.get_mut().truncate(20);
    machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap_err();
    let error = tokio::time::timeout(LIMIT, log.purge(upto)).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("snapshot up to entry 4000"), "{error}");
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 10);
}

#[tokio::test]
async fn a_damaged_snapshot_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(&dir.path().join("db")).unwrap();
    let store = RaftStore::open(&database, Lineage::default(), dir.path()).unwrap();
    store.space.insert(Record::Snapshot.key(), &b"junk"[..]).unwrap();
    let error = StateMachine::open(store, Arc::new(Last::default())).err().unwrap();
    assert!(matches!(&error, StoreError::Corrupt { record, .. } if record == "Snapshot"), "{error}");
}

#[tokio::test]
async fn the_ring_copy_is_read_back_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path()).unwrap();
    let copy = RingCopy::open(&database).unwrap();
    assert_eq!(copy.read().unwrap(), None);
    let mut machine = annulus_core::state::Machine::default();
    machine.apply(2, &found());
    let state = machine.state.unwrap();
    copy.write(&state);
    assert_eq!(copy.read().unwrap(), Some(state));
}

#[tokio::test]
async fn a_damaged_ring_copy_is_replaced_by_the_one_before_and_two_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let database = open_database(dir.path()).unwrap();
    let copy = RingCopy::open(&database).unwrap();
    let mut machine = annulus_core::state::Machine::default();
    let mut states = Vec::new();
    for index in 2..5 {
        machine.apply(index, &found());
        states.push(machine.state.clone().unwrap());
        copy.write(&states[states.len() - 1]);
    }
    // An older state does not replace a newer one.
    copy.write(&states[0]);
    assert_eq!(RingCopy::open(&database).unwrap().read().unwrap().as_ref(), Some(&states[2]));

    let raw = database.space("ring").unwrap();
    let damage = |key: &[u8]| {
        let mut bytes = raw.get(key).unwrap().unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        raw.insert(key, bytes).unwrap();
    };
    damage(b"state-a");
    let copy = RingCopy::open(&database).unwrap();
    assert_eq!(copy.read().unwrap().as_ref(), Some(&states[1]), "the third was in the first's place");
    copy.write(&states[2]);
    assert_eq!(RingCopy::open(&database).unwrap().read().unwrap().as_ref(), Some(&states[2]));
    damage(b"state-a");
    damage(b"state-b");
    let error = RingCopy::open(&database).unwrap().read().unwrap_err();
    assert!(error.to_string().contains("copy of the ring"), "{error}");
}

#[tokio::test]
async fn a_database_that_lost_a_promise_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let database = open_database(&dir.path().join(name)).unwrap();
        RaftStore::open(&database, Lineage::default(), dir.path()).map(|store| (database, store))
    };
    let promise = async |log: &mut LogStore, term: u64, entries: std::ops::Range<u64>| {
        log.save_vote(&Vote::new(term, 0)).await.unwrap();
        let entries = entries.map(|index| Entry { log_id: log_id(term, 0, index), ..entry(index, found()) });
        log.blocking_append(entries).await.unwrap();
    };
    let (database, store) = open("db").unwrap();
    let mut log = LogStore::new(database, store);
    promise(&mut log, 1, 0..5).await;
    // Entries that were never committed may be removed and replaced.
    log.truncate(log_id(1, 0, 3)).await.unwrap();
    drop(log);
    let again = || {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let opened = open_database(&dir.path().join("db"));
            match opened {
                Ok(database) => break database,
                Err(error) => assert!(std::time::Instant::now() < until, "{error}"),
            }
        }
    };
    let database = again();
    let store = RaftStore::open(&database, Lineage::default(), dir.path()).unwrap();
    let mut log = LogStore::new(database, store);
    promise(&mut log, 2, 3..4).await;
    drop(log);
    drop(again());

    // This is the state after the engine has treated a damaged end of the journal as a crash.
    let error = open("empty").err().unwrap();
    assert!(matches!(&error, StoreError::Forgot { what } if what == "a vote"), "{error}");
    let database = open_database(&dir.path().join("shorter")).unwrap();
    let raft = database.space("raft").unwrap();
    raft.insert(Record::Vote.key(), codec::encode(&Vote::new(2, 0)).unwrap()).unwrap();
    let error = RaftStore::open(&database, Lineage::default(), dir.path()).err().unwrap();
    assert!(error.to_string().contains("entries 1 to 3"), "{error}");
}
