//! The failure of host storage.

/// The reason why items can be neither read nor written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The node's database of items is damaged. It serves nothing until the node starts again, which sets the database
    /// aside.
    #[error("the database of items is damaged: {0}")]
    Damaged(String),
    /// The database of items cannot be created. The next use tries again.
    #[error("the database of items cannot be created: {0}")]
    NotCreated(String),
    /// The node is stopping, or the store was dropped.
    #[error("the store is closed")]
    Closed,
}
