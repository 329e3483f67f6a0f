//! The embedded key-value store below [`super::Store`].
//!
//! The journal contains all writes of all spaces in the order in which they were made. A crash keeps a prefix
//! of that order, with at least everything that was persisted; much of the node relies on this (a record that
//! depends on another one is written after it). Any engine that keeps this order can be used: fjall in a real
//! process, another one in a simulation.

use std::io;
use std::ops::Bound;

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// The reason why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// An error of the engine.
    #[error(transparent)]
    Engine(fjall::Error),
    /// An error of the file system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another process has the store open.
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

/// Id of an open space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpaceId(pub usize);

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The space to write to.
    pub space: SpaceId,
    /// The key to write.
    pub key: Bytes,
    /// The new value; `None` removes the key.
    pub value: Option<Bytes>,
}

/// Settings of a database. Those of spaces apply to the spaces that are created with them; an existing space keeps its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Number of threads that flush and compact. With more than one, flushes do not wait for compactions.
    pub workers: usize,
    /// Size of the cache of blocks in bytes, shared by all spaces.
    pub cache_bytes: u64,
    /// Size of the memtable of a space in bytes.
    pub memtable_bytes: u64,
    /// Compress large values in the journal.
    pub compresses_journal: bool,
    /// Keep values of at least this many bytes beside the tables, so that a compaction does not copy them.
    pub separates_from_bytes: Option<u32>,
}

impl EngineOptions {
    /// The control plane's database. Its memtables are small, because a node has several spaces and tests run several
    /// nodes on one machine; larger memtables would only delay flushes.
    pub const CONTROL: Self = Self {
        workers: 1,
        cache_bytes: 32 << 20,
        memtable_bytes: 4 << 20,
        compresses_journal: true,
        separates_from_bytes: None,
    };

    /// Return the settings of a database of items.
    ///
    /// `spread` is a number that differs from node to node. Nodes of equal load would otherwise fill their memtables,
    /// and with them their journals, at the same moment, and all replicas of a write would stall together.
    pub fn items(cache_bytes: u64, spread: u64) -> Self {
        Self {
            workers: 2,
            cache_bytes,
            // 7 to 9 MiB.
            memtable_bytes: (7 << 20) + spread % (2 << 20),
            compresses_journal: false,
            separates_from_bytes: Some(16 << 10),
        }
    }
}

/// Limits of one read of a range. The first key is read whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// Largest number of keys.
    pub keys: usize,
    /// Size of keys and values in bytes from which the read ends.
    pub bytes: usize,
}

impl ReadLimit {
    /// No limit.
    pub const NONE: Self = Self { keys: usize::MAX, bytes: usize::MAX };

    /// Read so many keys, whatever their size.
    pub fn keys(keys: usize) -> Self {
        Self { keys, ..Self::NONE }
    }
}

/// Collect the keys and values of a range within a limit, for implementations of [`Engine::range`].
///
/// # Errors
/// The first error among those items.
pub fn collect_within(
    items: impl Iterator<Item = Result<(Bytes, Bytes), Trouble>>,
    limit: ReadLimit,
) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
    let (mut read, mut bytes) = (Vec::new(), 0_usize);
    for item in items.take(limit.keys) {
        let (key, value) = item?;
        bytes = bytes.saturating_add(key.len() + value.len());
        read.push((key, value));
        if bytes >= limit.bytes {
            break;
        }
    }
    Ok(read)
}

/// An embedded key-value store: spaces of ordered keys over one journal.
pub trait Engine: Send + Sync + 'static {
    /// Open a space, or create it.
    ///
    /// # Errors
    /// Errors of the engine or the system, here and below.
    fn space(&self, name: &str) -> Result<SpaceId, Trouble>;

    /// Return the names of all spaces, ordered.
    fn spaces(&self) -> Vec<String>;

    /// Remove a space with its contents. Its id is never used again; nothing may read or write it from now on.
    fn remove_space(&self, space: SpaceId) -> Result<(), Trouble>;

    /// Read a value.
    fn get(&self, space: SpaceId, key: &[u8]) -> Result<Option<Bytes>, Trouble>;

    /// Return the size of a value in bytes, without reading a value that is kept beside the tables.
    fn size(&self, space: SpaceId, key: &[u8]) -> Result<Option<usize>, Trouble>;

    /// Read keys with their values, in order, or in reverse order if `back`.
    fn range(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        back: bool,
        limit: ReadLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, Trouble>;

    /// Read at most `limit` keys in order, without values.
    fn keys(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, Trouble>;

    /// Write a batch as a whole, after all earlier writes. It is on disk after the next [`Engine::persist`].
    fn write(&self, batch: Vec<Op>) -> Result<(), Trouble>;

    /// Wait until everything written before the first poll is on disk. May block the polling thread.
    fn persist(&self) -> BoxFuture<'_, Result<(), Trouble>>;

    /// Write a batch as a whole, after all earlier writes, and wait until it is on disk. Reads see the batch only then.
    /// May block the polling thread. A key may occur once in the batch.
    fn commit(&self, batch: Vec<Op>) -> BoxFuture<'_, Result<(), Trouble>>;
}
