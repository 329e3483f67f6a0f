//! The failure of host storage.

/// The reason why items can be neither read nor written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The node's database of items is damaged. It serves nothing until the node starts again, which sets the database
    /// aside.
    #[error("the database of items is damaged: {0}")]
    Damaged(String),
    /// The system refuses to create or to read the database for now. The next use tries again.
    #[error("{0}")]
    Unavailable(String),
    /// A key and sort are longer than the database takes. Nothing was changed.
    #[error("key and sort of an item take {0} bytes on disk; the limit is {max}", max = super::keys::MAX_KEY)]
    TooLong(usize),
    /// The node is stopping, or the store was dropped.
    #[error("the store is closed")]
    Closed,
}
