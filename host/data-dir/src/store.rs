//! The embedded store as the node uses it: spaces of keys in order, batches, and one journal.
//!
//! What is written is in the journal in the order in which it was written, over all spaces. A crash keeps a
//! prefix of that order, with all that was persisted in it; much of the node relies on this (what may be lost
//! is written after what must not be lost without it). An [`Engine`] that keeps it can stand below: fjall in a
//! process that serves users, a simulation's own elsewhere.

use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::Disk;

/// Why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The engine says so.
    #[error(transparent)]
    Engine(fjall::Error),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Somebody else has it open.
    #[error("another process has it open")]
    Locked,
}

impl From<fjall::Error> for Trouble {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Locked => Self::Locked,
            other => Self::Engine(other),
        }
    }
}

/// Names a space of an engine that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpaceId(pub usize);

/// One step of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Where.
    pub space: SpaceId,
    /// Of what.
    pub key: Vec<u8>,
    /// What it is from now on; `None` removes it.
    pub value: Option<Bytes>,
}

/// What a [`Store`] stands on.
pub trait Engine: Send + Sync + 'static {
    /// Opens a space, or makes it.
    ///
    /// # Errors
    /// What the engine or the system says, here and below.
    fn space(&self, name: &str) -> Result<SpaceId, Trouble>;

    /// A value.
    fn get(&self, space: SpaceId, key: &[u8]) -> Result<Option<Bytes>, Trouble>;

    /// Keys with their values: at most `limit`, in order, or from the end if `back`.
    fn range(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        back: bool,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Trouble>;

    /// Writes all or nothing, behind what was written before. It is on disk after the next
    /// [`Engine::persist`].
    fn write(&self, batch: Vec<Op>) -> Result<(), Trouble>;

    /// Ends when all that was written before the first poll is on disk. The thread that polls it may stand
    /// until then.
    fn persist(&self) -> BoxFuture<'_, Result<(), Trouble>>;
}

/// An open store. Clones are the same one, which is closed with the last of them and of its spaces.
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
    pub(super) fn new(engine: Arc<dyn Engine>, disk: Disk) -> Self {
        Self { engine, disk }
    }

    /// The disk that it lies on.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Opens a space, or makes it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn space(&self, name: &str) -> Result<Space, Trouble> {
        Ok(Space { store: self.clone(), id: self.engine.space(name)? })
    }

    /// A batch of nothing.
    pub fn batch(&self) -> Batch {
        Batch { store: self.clone(), ops: Vec::new() }
    }

    /// Makes all that was written before durable. The thread that polls it may stand until then: see
    /// [`annulus_ground::service`] and [`annulus_ground::aside`].
    ///
    /// # Errors
    /// What is on disk is unknown then.
    pub async fn persist(&self) -> Result<(), Trouble> {
        self.engine.persist().await
    }
}

/// Keys and values of one purpose.
#[derive(Clone, Debug)]
pub struct Space {
    store: Store,
    id: SpaceId,
}

impl Space {
    /// A value.
    ///
    /// # Errors
    /// It cannot be read, here and below.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, Trouble> {
        self.store.engine.get(self.id, key.as_ref())
    }

    /// Keys within a range and their values, in order.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        self.look(range, false, usize::MAX)
    }

    /// The last key within a range and its value.
    pub fn last<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
    ) -> Result<Option<(Bytes, Bytes)>, Trouble> {
        Ok(self.look(range, true, 1)?.pop())
    }

    /// All keys and their values, in order.
    pub fn all(&self) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        self.range::<&[u8]>(..)
    }

    /// Is nothing in it?
    pub fn is_empty(&self) -> Result<bool, Trouble> {
        Ok(self.look::<&[u8]>(.., false, 1)?.is_empty())
    }

    fn look<K: AsRef<[u8]>>(
        &self,
        range: impl RangeBounds<K>,
        back: bool,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        let from = range.start_bound().map(AsRef::as_ref);
        let to = range.end_bound().map(AsRef::as_ref);
        self.store.engine.range(self.id, from, to, back, limit)
    }

    /// Writes a value.
    ///
    /// # Errors
    /// What is on disk is unknown then, here and below.
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<(), Trouble> {
        let mut batch = self.store.batch();
        batch.insert(self, key, value);
        batch.commit()
    }

    /// Removes a value.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<(), Trouble> {
        let mut batch = self.store.batch();
        batch.remove(self, key);
        batch.commit()
    }
}

/// What is written as a whole or not at all.
pub struct Batch {
    store: Store,
    ops: Vec<Op>,
}

impl Batch {
    /// Adds a value.
    pub fn insert(&mut self, space: &Space, key: impl AsRef<[u8]>, value: impl Into<Bytes>) {
        self.ops.push(Op { space: space.id, key: key.as_ref().to_vec(), value: Some(value.into()) });
    }

    /// Adds a removal.
    pub fn remove(&mut self, space: &Space, key: impl AsRef<[u8]>) {
        self.ops.push(Op { space: space.id, key: key.as_ref().to_vec(), value: None });
    }

    /// Writes it.
    ///
    /// # Errors
    /// What is on disk is unknown then.
    pub fn commit(self) -> Result<(), Trouble> {
        if self.ops.is_empty() { Ok(()) } else { self.store.engine.write(self.ops) }
    }
}
