//! The file system as the node uses it: the system's, or that of a simulated machine.
//!
//! What was written to a file is on disk when the file was synced, and a file has its name after a crash when
//! its directory was synced since. Nothing is promised before.

use std::any::Any;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::store::Engine;
use super::{DataDirError, Store, database};

/// How a file is opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// A new one, that only its owner can read; one that is there is an error.
    Private,
    /// An empty one: one that is there is made empty.
    Empty,
    /// The one that is there, or an empty one.
    Kept,
}

/// Who may enter a new directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner.
    Owner,
    /// As the process has it.
    Usual,
}

/// What a directory has.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in the directory.
    pub name: OsString,
    /// When it was last written, where that is known.
    pub modified: Option<SystemTime>,
}

/// Held as long as it lives.
pub type Lock = Box<dyn Any + Send + Sync>;

/// A file that is open for writing.
pub trait Handle: Send {
    /// Writes at a place, and makes the file longer if need be.
    ///
    /// # Errors
    /// A part of it may be written.
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes its contents durable, and what is needed to read them again.
    ///
    /// # Errors
    /// What is on disk is unknown then, here and below.
    fn sync_data(&mut self) -> io::Result<()>;

    /// The same with all that is known of the file.
    fn sync_all(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// What a [`Disk`] stands on. All of it blocks, and errors are the system's.
pub trait Files: fmt::Debug + Send + Sync + 'static {
    /// Makes a directory and those above it that are missing; one that is there is left as it is.
    fn create_dir(&self, path: &Path, access: Access) -> io::Result<()>;

    /// Opens a file for writing.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn Handle>>;

    /// Reads a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Gives a file or a directory another name; a file of that name is gone then.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory with all that is in it.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// What is in a directory, in any order.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Is there anything of this name?
    fn is_there(&self, path: &Path) -> bool;

    /// Makes durable what was created, renamed or removed in a directory.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes a lock, whose file is made if need be.
    fn lock(&self, path: &Path) -> Result<Lock, TryLockError>;

    /// Opens a database, or makes it.
    fn engine(&self, path: &Path) -> Result<Arc<dyn Engine>, DataDirError>;
}

/// A disk. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Disk(Arc<dyn Files>);

impl Disk {
    /// The system's.
    pub fn real() -> Self {
        Self::new(Real)
    }

    /// Another one.
    pub fn new(files: impl Files) -> Self {
        Self(Arc::new(files))
    }

    /// Makes a directory and those above it that are missing, durably: else a loss of power could take away the
    /// whole of it, with all that was synced in it. One that is there is left as it is.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create_dir_durably(&self, path: &Path, access: Access) -> io::Result<()> {
        let missing = path.ancestors().take_while(|dir| !self.is_there(dir)).count();
        self.create_dir(path, access)?;
        // One that is there may be of a process that was killed before it came to this.
        for dir in path.ancestors().take(missing.max(1)) {
            let above = match dir.parent() {
                Some(above) if above != Path::new("") => above,
                _ => Path::new("."),
            };
            if let Err(error) = self.sync_dir(above) {
                // It may be entered only, not read.
                let (dir, above) = (dir.display(), above.display());
                tracing::warn!(%error, "{above} cannot be synced: a loss of power may take away {dir}");
            }
        }
        Ok(())
    }

    /// Opens a database on it, or makes it.
    ///
    /// # Errors
    /// It cannot be opened; nothing was changed.
    pub fn database(&self, path: &Path) -> Result<Store, DataDirError> {
        Ok(Store::new(self.0.engine(path)?, self.clone()))
    }
}

impl Deref for Disk {
    type Target = dyn Files;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// The system's files, and fjall.
#[derive(Debug)]
struct Real;

impl Files for Real {
    fn create_dir(&self, path: &Path, access: Access) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        if access == Access::Owner {
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        }
        builder.create(path)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn Handle>> {
        let mut options = File::options();
        options.write(true);
        match how {
            Open::Private => {
                options.create_new(true);
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            }
            Open::Empty => drop(options.create(true).truncate(true)),
            Open::Kept => drop(options.create(true).truncate(false)),
        }
        Ok(Box::new(options.open(path)?))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            let modified = entry.metadata().and_then(|data| data.modified()).ok();
            Ok(Entry { name: entry.file_name(), modified })
        };
        fs::read_dir(path)?.map(entry).collect()
    }

    fn is_there(&self, path: &Path) -> bool {
        path.exists()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> Result<Lock, TryLockError> {
        let lock = File::options().create(true).truncate(false).write(true).open(path);
        let lock = lock.map_err(TryLockError::Error)?;
        lock.try_lock()?;
        Ok(Box::new(lock))
    }

    fn engine(&self, path: &Path) -> Result<Arc<dyn Engine>, DataDirError> {
        database::open(path)
    }
}

impl Handle for File {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.seek(SeekFrom::Start(at))?;
        self.write_all(bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&mut self) -> io::Result<()> {
        File::sync_all(self)
    }
}
