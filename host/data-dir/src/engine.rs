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
    pub key: Vec<u8>,
    /// The new value; `None` removes the key.
    pub value: Option<Bytes>,
}

/// An embedded key-value store: spaces of ordered keys over one journal.
pub trait Engine: Send + Sync + 'static {
    /// Open a space, or create it.
    ///
    /// # Errors
    /// Errors of the engine or the system, here and below.
    fn space(&self, name: &str) -> Result<SpaceId, Trouble>;

    /// Read a value.
    fn get(&self, space: SpaceId, key: &[u8]) -> Result<Option<Bytes>, Trouble>;

    /// Read at most `limit` keys with their values, in order, or in reverse order if `back`.
    fn range(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        back: bool,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Trouble>;

    /// Write a batch as a whole, after all earlier writes. It is on disk after the next [`Engine::persist`].
    fn write(&self, batch: Vec<Op>) -> Result<(), Trouble>;

    /// Wait until everything written before the first poll is on disk. May block the polling thread.
    fn persist(&self) -> BoxFuture<'_, Result<(), Trouble>>;
}
