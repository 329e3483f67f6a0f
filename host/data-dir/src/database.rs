//! The node's one database, shared by the control plane and the modules' items (D7).

use std::io::Write;
use std::path::Path;

use fjall::{Database, KeyspaceCreateOptions};

use super::DataDirError;
use super::files::corrupt;
use super::obstacle::database_trouble;

/// Memtable of one keyspace. Small, because a node has several keyspaces and tests run several
/// nodes on one machine; larger ones would only delay flushes.
pub const KEYSPACE_MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;

/// Blocks that were read and stay in memory, for all keyspaces together.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// Opens the database, or makes it.
pub fn open_database(path: &Path) -> Result<Database, DataDirError> {
    let open = || Database::builder(path).cache_size(CACHE_BYTES).worker_threads(1).open();
    // The engine takes some kinds of damage for impossible.
    match std::panic::catch_unwind(open) {
        Ok(opened) => opened.map_err(|source| DataDirError::Database { path: path.to_owned(), source }),
        Err(_) => Err(corrupt(path, "the engine cannot make sense of it")),
    }
}

/// Options of a keyspace of it.
pub fn keyspace_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(KEYSPACE_MEMTABLE_BYTES)
}

/// Ends the process after the database failed to write or to sync: what is on disk is unknown
/// from here on, and peers take over (D7).
pub fn fatal(error: &fjall::Error) -> ! {
    let trouble = database_trouble(
        error,
        "What is on disk is unknown: see whether the disk is sound, then start again",
    );
    tracing::error!(trouble, "the database failed to write; ending this process");
    // Nothing more can be done where stderr fails too, and the process must end all the same.
    let stderr = &mut std::io::stderr();
    drop(writeln!(stderr, "annulus: the database failed to write, ending this process: {trouble}"));
    std::process::exit(70)
}
