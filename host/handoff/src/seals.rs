//! The durable seals of this node. A sealed partition stays sealed over a restart, until the log decides the fate of
//! its transfer (R1).

use std::collections::BTreeMap;
use std::sync::Arc;

use annulus_core::ids::TransferId;
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_data_dir::{RESTORE, Space, Store, Trouble, database_trouble, fatal};
use parking_lot::Mutex;

/// A failure to read the seals.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The database failed.
    #[error("the seals in the database cannot be read: {}", database_trouble(.0, RESTORE))]
    Database(#[from] Trouble),
    /// A record is not of the expected shape.
    #[error("a seal's record in the database is damaged: {0} bytes of key, {1} of value. {RESTORE}")]
    Damaged(usize, usize),
}

/// The seals of one node, in memory and on disk. Cheap to clone.
#[derive(Clone)]
pub struct Seals {
    inner: Arc<Inner>,
}

struct Inner {
    database: Store,
    space: Space,
    known: Mutex<BTreeMap<PartitionId, TransferId>>,
}

impl Seals {
    /// Read the seals of the node's database.
    ///
    /// # Errors
    /// If the seals cannot be read. The node must not serve then.
    pub fn open(database: &Store) -> Result<Self, SealError> {
        let space = database.space("seals")?;
        let mut known = BTreeMap::new();
        for (key, value) in space.all()? {
            let damaged = || SealError::Damaged(key.len(), value.len());
            let partition = u16::from_be_bytes(key.as_ref().try_into().map_err(|_| damaged())?);
            let transfer = u64::from_be_bytes(value.as_ref().try_into().map_err(|_| damaged())?);
            known.insert(PartitionId(partition), TransferId(transfer));
        }
        if mutants::on(Mutant::ForgetSeal) {
            known.clear();
        }
        let (database, known) = (database.clone(), Mutex::new(known));
        Ok(Self { inner: Arc::new(Inner { database, space, known }) })
    }

    /// Return every seal.
    pub fn all(&self) -> Vec<(PartitionId, TransferId)> {
        self.inner.known.lock().iter().map(|(partition, transfer)| (*partition, *transfer)).collect()
    }

    pub(super) fn is_sealed(&self, partition: PartitionId, transfer: TransferId) -> bool {
        self.inner.known.lock().get(&partition) == Some(&transfer)
    }

    /// Add a seal, which is durable when this returns. Blocks the polling thread for a sync of the disk.
    pub async fn put(&self, partition: PartitionId, transfer: TransferId) {
        let Inner { database, space, known } = &*self.inner;
        known.lock().insert(partition, transfer);
        let written = space.insert(partition.0.to_be_bytes(), transfer.0.to_be_bytes().to_vec());
        written.unwrap_or_else(|error| fatal(&error));
        database.persist().await.unwrap_or_else(|error| fatal(&error));
    }

    /// Remove a seal, if it is of this transfer. The removal need not be durable: a seal that exists again after a
    /// restart is compared with the log again.
    pub fn remove(&self, partition: PartitionId, transfer: TransferId) {
        let mut known = self.inner.known.lock();
        if known.get(&partition) == Some(&transfer) {
            known.remove(&partition);
            self.inner.space.remove(partition.0.to_be_bytes()).unwrap_or_else(|error| fatal(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_seal_survives_a_restart_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (p, t) = (PartitionId(7), TransferId(42));
        {
            let database = annulus_data_dir::open_database(dir.path()).unwrap();
            Seals::open(&database).unwrap().put(p, t).await;
        }
        let database = annulus_data_dir::open_database(dir.path()).unwrap();
        let seals = Seals::open(&database).unwrap();
        assert!(seals.is_sealed(p, t));
        seals.remove(p, TransferId(43));
        assert_eq!(seals.all(), [(p, t)]);
        seals.remove(p, t);
        assert!(Seals::open(&database).unwrap().all().is_empty());
    }
}
