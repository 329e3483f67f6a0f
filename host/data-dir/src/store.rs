//! The node's store: typed access to an [`Engine`], for the control plane (D7).

use std::fmt;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::Disk;
use super::engine::{Engine, EngineOptions, Op, ReadLimit, SpaceId, Trouble};
use super::error::DataDirError;

/// An open store. Clones share it; it is closed when the last clone and the last of its spaces are dropped.
#[derive(Clone)]
pub struct Store {
    engine: Arc<dyn Engine>,
    disk: Disk,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Store {
    /// Return the disk of the store.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Open a space, or create it.
    ///
    /// # Errors
    /// The space cannot be opened.
    pub fn space(&self, name: &str) -> Result<Space, Trouble> {
        Ok(Space { store: self.clone(), id: self.engine.space(name)? })
    }

    /// Create an empty batch.
    pub fn batch(&self) -> Batch {
        Batch { store: self.clone(), ops: Vec::new() }
    }

    /// Wait until everything written so far is on disk. May block the polling thread: see
    /// [`annulus_ground::service`] and [`annulus_ground::aside`].
    ///
    /// # Errors
    /// The contents of the disk are unknown afterwards.
    pub async fn persist(&self) -> Result<(), Trouble> {
        self.engine.persist().await
    }
}

/// A keyspace of a store. Clones share it.
#[derive(Clone, Debug)]
pub struct Space {
    store: Store,
    id: SpaceId,
}

impl Space {
    /// Read a value.
    ///
    /// # Errors
    /// The engine cannot read, here and below.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, Trouble> {
        self.store.engine.get(self.id, key.as_ref())
    }

    /// Read the keys of a range with their values, in order.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        self.look(range, false, ReadLimit::NONE)
    }

    /// Read the last key of a range with its value.
    pub fn last<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
    ) -> Result<Option<(Bytes, Bytes)>, Trouble> {
        Ok(self.look(range, true, ReadLimit::keys(1))?.pop())
    }

    /// Read all keys with their values, in order.
    pub fn all(&self) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        self.range::<&[u8]>(..)
    }

    /// Return true if the space has no keys.
    pub fn is_empty(&self) -> Result<bool, Trouble> {
        Ok(self.look::<&[u8]>(.., false, ReadLimit::keys(1))?.is_empty())
    }

    fn look<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        back: bool,
        limit: ReadLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        let from = range.start_bound().map(AsRef::as_ref);
        let to = range.end_bound().map(AsRef::as_ref);
        self.store.engine.range(self.id, from, to, back, limit)
    }

    /// Write a value.
    ///
    /// # Errors
    /// The contents of the disk are unknown afterwards, here and below.
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<(), Trouble> {
        let mut batch = self.store.batch();
        batch.insert(self, key, value);
        batch.commit()
    }

    /// Remove a key.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<(), Trouble> {
        let mut batch = self.store.batch();
        batch.remove(self, key);
        batch.commit()
    }
}

/// Writes that are applied as a whole or not at all.
pub struct Batch {
    store: Store,
    ops: Vec<Op>,
}

impl Batch {
    /// Add a write.
    pub fn insert(&mut self, space: &Space, key: impl AsRef<[u8]>, value: impl Into<Bytes>) {
        self.ops.push(Op {
            space: space.id,
            key: Bytes::copy_from_slice(key.as_ref()),
            value: Some(value.into()),
        });
    }

    /// Add a removal.
    pub fn remove(&mut self, space: &Space, key: impl AsRef<[u8]>) {
        self.ops.push(Op { space: space.id, key: Bytes::copy_from_slice(key.as_ref()), value: None });
    }

    /// Write the batch.
    ///
    /// # Errors
    /// The contents of the disk are unknown afterwards.
    pub fn commit(self) -> Result<(), Trouble> {
        if self.ops.is_empty() { Ok(()) } else { self.store.engine.write(self.ops) }
    }
}

impl Disk {
    /// Open a database of the control plane on this disk, or create it.
    ///
    /// # Errors
    /// The database cannot be opened; nothing was changed.
    pub fn database(&self, path: &Path) -> Result<Store, DataDirError> {
        Ok(Store { engine: self.engine(path, &EngineOptions::CONTROL)?, disk: self.clone() })
    }
}
