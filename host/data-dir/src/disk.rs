//! The node's interface to a file system, of the system or of a simulated machine.
//!
//! The contents of a file are on disk once the file is synced, and its name is on disk once its directory is synced.
//! Neither is guaranteed before.

use std::any::Any;
use std::ffi::OsString;
use std::fmt;
use std::fs::TryLockError;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::engine::{Engine, EngineOptions};
use super::error::DataDirError;

/// Mode of opening a file for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Create a file that only its owner can read. An existing file is an error.
    Private,
    /// Create a file, or truncate an existing one.
    Empty,
    /// Keep the contents of an existing file, or create an empty one.
    Kept,
}

/// Permissions of a new directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only its owner may enter.
    Owner,
    /// The process's default.
    Usual,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name within the directory.
    pub name: OsString,
    /// Time of the last write, if known.
    pub modified: Option<SystemTime>,
}

/// A lock, released when it is dropped.
pub type Lock = Box<dyn Any + Send + Sync>;

/// A file that is open for writing.
pub trait Handle: Send {
    /// Write at an offset. The file grows as needed.
    ///
    /// # Errors
    /// Part of the bytes may be written.
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Make the contents durable, with the metadata needed to read them.
    ///
    /// # Errors
    /// The contents of the disk are unknown afterwards, here and below.
    fn sync_data(&mut self) -> io::Result<()>;

    /// Make the contents and all metadata durable.
    fn sync_all(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Implementation of a [`Disk`]. All methods block; errors are the system's.
pub trait Files: fmt::Debug + Send + Sync + 'static {
    /// Create a directory with its missing parents. An existing one is left unchanged.
    fn create_dir(&self, path: &Path, access: Access) -> io::Result<()>;

    /// Open a file for writing.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn Handle>>;

    /// Read a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Rename a file or a directory. A file with the new name is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Remove a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Remove a directory with its contents.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// List a directory, in any order.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Return true if a file or directory with this name exists.
    fn is_there(&self, path: &Path) -> bool;

    /// Make creations, renames and removals in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Lock a file. Create it if it is missing.
    fn lock(&self, path: &Path) -> Result<Lock, TryLockError>;

    /// Return the number of bytes that this process can still write to the file system of a path.
    fn free(&self, path: &Path) -> io::Result<u64>;

    /// Open a database's engine, or create its files. Everything that the engine shows is on disk when this returns, also
    /// what a killed process had written and not synced.
    fn engine(&self, path: &Path, options: &EngineOptions) -> Result<Arc<dyn Engine>, DataDirError>;
}

/// A disk. Clones share it.
#[derive(Clone, Debug)]
pub struct Disk(Arc<dyn Files>);

impl Disk {
    /// Wrap an implementation. [`Disk::real`] is the system's disk.
    pub fn new(files: impl Files) -> Self {
        Self(Arc::new(files))
    }

    /// Create a directory with its missing parents, durably: otherwise a loss of power could remove the directory
    /// with everything synced in it. An existing one is left unchanged.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn create_dir_durably(&self, path: &Path, access: Access) -> io::Result<()> {
        let missing = path.ancestors().take_while(|dir| !self.is_there(dir)).count();
        self.create_dir(path, access)?;
        // An existing directory may come from a process that was killed before it synced.
        for dir in path.ancestors().take(missing.max(1)) {
            let above = match dir.parent() {
                Some(above) if above != Path::new("") => above,
                _ => Path::new("."),
            };
            if let Err(error) = self.sync_dir(above) {
                // This process may be allowed to enter the directory but not to read it.
                let (dir, above) = (dir.display(), above.display());
                tracing::warn!(%error, "{above} cannot be synced: a loss of power may remove {dir}");
            }
        }
        Ok(())
    }
}

impl Deref for Disk {
    type Target = dyn Files;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}
