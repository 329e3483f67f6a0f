//! Errors of a data directory, each with its remedy.

use std::path::{Path, PathBuf};

use super::engine::Trouble;
use super::layout::{HINTS_LAYOUT, JOIN, LAYOUT_VERSION};
use super::obstacle::{RESTORE, database_trouble, obstacle};

/// The reason why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process holds the directory's lock.
    #[error("{0} is in use by another annulus process")]
    Locked(PathBuf),
    /// The directory was written by another version of annulus.
    #[error(
        "{path} has layout version {found}, this annulus reads versions {LAYOUT_VERSION} to {HINTS_LAYOUT}"
    )]
    OtherVersion {
        /// The `IDENTITY` file.
        path: PathBuf,
        /// Version in the file.
        found: u64,
    },
    /// The directory belongs to another user of the machine.
    #[error(
        "{path} belongs to user {owner}, and a node keeps its keys there; start it as that user, or give the \
         directory to this one (chown)"
    )]
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Number of the user that owns it.
        owner: u32,
    },
    /// The directory belongs to a node with another name.
    #[error("{path} belongs to node {found}, not to {wanted}; start with --name {found} or another --data")]
    OtherName {
        /// The directory.
        path: PathBuf,
        /// The name in it.
        found: String,
        /// The requested name.
        wanted: String,
    },
    /// A file in the directory is damaged.
    #[error("{path} is corrupt: {reason}. {}", way_out(path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Description of the damage.
        reason: String,
    },
    /// A required file is missing.
    #[error("{path} is missing. {way}", path = .0.display(), way = way_out(.0))]
    Missing(PathBuf),
    /// The directory has a database but no `IDENTITY`: its `IDENTITY` was lost.
    #[error("{path} has a database but no IDENTITY. {way}", path = .0.display(), way = way_out(.0))]
    NoIdentity(PathBuf),
    /// The file system returned an error.
    #[error("{path}: {source}{}", may_be(source))]
    Io {
        /// The file or directory that was read or written.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The database in the directory cannot be opened.
    #[error("the database {path} cannot be opened: {}", database_trouble(source, RESTORE))]
    Database {
        /// The database's directory.
        path: PathBuf,
        /// The cause.
        source: Trouble,
    },
}

/// Return the remedy for an error of the file system, as the end of its message; empty if none is known.
fn may_be(source: &std::io::Error) -> String {
    obstacle(source).map(|way| format!(". {way}")).unwrap_or_default()
}

/// Return the remedy for a damaged file.
fn way_out(path: &Path) -> &'static str {
    if path.file_name().is_some_and(|name| name == JOIN) {
        // Repeating a join from the same directory gives the same reply.
        return "It records the progress of a join: remove it, start, and run `join` again";
    }
    "Nothing was changed. Put the file back if you have it as it was when the node stopped (an older copy will \
     not do), or run `annulus start --rejoin-as-new`, which sets aside all that is here and starts a new node"
}

/// Create the error for a damaged file.
pub(super) fn corrupt(path: &Path, reason: impl std::fmt::Display) -> DataDirError {
    DataDirError::Corrupt { path: path.to_owned(), reason: reason.to_string() }
}
