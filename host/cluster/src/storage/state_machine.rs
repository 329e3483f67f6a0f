//! Raft's state machine: the committed state in memory, with durable snapshots.
//!
//! After a restart, the state is that of the last snapshot plus the log up to the last entry known to be
//! committed.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::sync::Arc;

use annulus_core::state::{ClusterState, Machine};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{CommittedLeaderId, EmptyNode, EntryPayload, Membership, OptionalSend, StorageIOError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{RaftStore, Record, StoreError, Synced};
use crate::raft::{Applied, Entry, LogId, RaftTypes, StorageError, StoredMembership, Vote};
use annulus_core::codec::{self, CodecError};

/// Receiver of committed states, called once per applied batch. Must not block.
pub trait StateSink: Send + Sync + 'static {
    /// Receive a state that is newer than all earlier ones from the same machine.
    fn committed(&self, state: &ClusterState);
}

/// Term of the snapshot with which a recovery starts.
const FIRST_TERM: u64 = 1;

pub(super) type Meta = SnapshotMeta<u64, EmptyNode>;

/// A stored snapshot.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    meta: Meta,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

impl Stored {
    /// Return the last entry in the snapshot.
    pub(super) fn last(&self) -> Option<LogId> {
        self.meta.last_log_id
    }
}

#[derive(Default)]
struct Inner {
    machine: Machine,
    last: Option<LogId>,
    membership: StoredMembership,
}

/// The state machine. Clones share it.
#[derive(Clone)]
pub struct StateMachine {
    inner: Arc<Mutex<Inner>>,
    store: RaftStore,
    sink: Arc<dyn StateSink>,
}

impl StateMachine {
    /// Open the state machine at the last snapshot.
    pub fn open(store: RaftStore, sink: Arc<dyn StateSink>) -> Result<Self, StoreError> {
        let inner = match store.get::<Stored>(Record::Snapshot)? {
            None => Inner::default(),
            Some(Stored { meta, data }) => Inner {
                machine: super::decode(&data, || "snapshot".into())?,
                last: meta.last_log_id,
                membership: meta.last_membership,
            },
        };
        let machine = Self { inner: Arc::new(Mutex::new(inner)), store, sink };
        machine.publish();
        Ok(machine)
    }

    /// Initialize the store of a new lineage with its first state, decided by one node alone (R19): a snapshot
    /// of a group in which only that node votes.
    pub async fn begin(store: &RaftStore, state: &ClusterState, me: u64) -> Result<(), StoreError> {
        let corrupt = |source| StoreError::Corrupt { record: "beginning of a lineage".into(), source };
        let last = LogId::new(CommittedLeaderId::new(FIRST_TERM, me), state.applied);
        let membership = Membership::new(vec![BTreeSet::from([me])], ());
        let meta = Meta {
            last_log_id: Some(last),
            last_membership: StoredMembership::new(Some(last), membership),
            snapshot_id: format!("{}-{}", last.leader_id, last.index),
        };
        let machine = Machine { state: Some(state.clone()) };
        let data = codec::encode(&machine).map_err(corrupt)?;
        store.put(Record::Vote, &Vote::new(FIRST_TERM, me)).map_err(corrupt)?;
        store.put(Record::Purged, &last).map_err(corrupt)?;
        store.put(Record::Committed, &Some(last)).map_err(corrupt)?;
        store.put(Record::Snapshot, &Stored { meta, data }).map_err(corrupt)?;
        *store.snapshot.written.lock() = Some(last);
        store.syncer.sync().await;
        store.snapshot.synced.send_replace(Synced { last: Some(last), failed: None });
        Ok(())
    }

    fn publish(&self) {
        if let Some(state) = &self.inner.lock().machine.state {
            self.sink.committed(state);
        }
    }

    /// Build a snapshot of the current state, without storing it.
    pub(super) fn copy(&self) -> Result<(Meta, Vec<u8>), CodecError> {
        let inner = self.inner.lock();
        let data = codec::encode(&inner.machine)?;
        let snapshot_id = match &inner.last {
            // A snapshot is named after its contents, because equal snapshots need not be distinguished.
            Some(last) => format!("{}-{}", last.leader_id, last.index),
            None => "empty".into(),
        };
        let last_membership = inner.membership.clone();
        Ok((Meta { last_log_id: inner.last, last_membership, snapshot_id }, data))
    }

    /// Store a snapshot durably, unless a newer one is stored: one may have been received while this one was
    /// built.
    pub(super) async fn keep(&self, meta: Meta, data: Vec<u8>) -> Result<(), StorageError> {
        let signature = meta.signature();
        let last = meta.last_log_id;
        let progress = &self.store.snapshot;
        {
            let mut written = progress.written.lock();
            if last >= *written {
                self.store
                    .put(Record::Snapshot, &Stored { meta, data })
                    .map_err(|error| StorageIOError::write_snapshot(Some(signature), &error))?;
                *written = last;
            }
        }
        // Raft purges the entries next, so the snapshot must be on disk.
        self.store.syncer.sync().await;
        progress.synced.send_if_modified(|synced| {
            let newer = last > synced.last;
            if newer {
                synced.last = last;
            }
            newer
        });
        Ok(())
    }

    async fn install(&self, meta: &Meta, data: Vec<u8>) -> Result<(), StorageError> {
        let machine = codec::decode(&data)
            .map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), &error))?;
        self.keep(meta.clone(), data).await?;
        *self.inner.lock() =
            Inner { machine, last: meta.last_log_id, membership: meta.last_membership.clone() };
        self.publish();
        Ok(())
    }
}

impl RaftSnapshotBuilder<RaftTypes> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<RaftTypes>, StorageError> {
        let (meta, data) = self.copy().map_err(|error| StorageIOError::read_state_machine(&error))?;
        self.keep(meta.clone(), data.clone()).await?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

impl RaftStateMachine<RaftTypes> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let inner = self.inner.lock();
        Ok((inner.last, inner.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut changed = false;
        let outcomes = {
            let mut inner = self.inner.lock();
            let apply = |entry: Entry| {
                inner.last = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => None,
                    EntryPayload::Membership(membership) => {
                        inner.membership = StoredMembership::new(Some(entry.log_id), membership);
                        None
                    }
                    EntryPayload::Normal(command) => {
                        changed = true;
                        Some(inner.machine.apply(entry.log_id.index, &command))
                    }
                }
            };
            entries.into_iter().map(apply).collect()
        };
        // This comes before Raft replies to the proposer, so that a proposer on this node finds its change in
        // the view.
        if changed {
            self.publish();
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let installed = self.install(meta, snapshot.into_inner()).await;
        // Raft purges next, and must not wait for a snapshot that is never stored.
        if let Err(error) = &installed {
            let failed = Some(error.to_string());
            self.store.snapshot.synced.send_modify(|Synced { failed: place, .. }| *place = failed);
        }
        installed
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<RaftTypes>>, StorageError> {
        let stored = self
            .store
            .get::<Stored>(Record::Snapshot)
            .map_err(|error| StorageIOError::read_snapshot(None, &error))?;
        Ok(stored.map(|Stored { meta, data }| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}
