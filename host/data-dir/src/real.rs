//! The system's disk.

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use super::database;
use super::disk::{Access, Disk, Entry, Files, Handle, Lock, Open};
use super::engine::{Engine, EngineOptions};
use super::error::DataDirError;
use super::store::Store;

/// Open a database on the system's disk, or create it.
pub fn open_database(path: &Path) -> Result<Store, DataDirError> {
    Disk::real().database(path)
}

impl Disk {
    /// The system's disk.
    pub fn real() -> Self {
        Self::new(Real)
    }
}

/// The system's files, and fjall as the engine.
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

    fn free(&self, path: &Path) -> io::Result<u64> {
        let room = rustix::fs::statvfs(path)?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    }

    fn engine(&self, path: &Path, options: &EngineOptions) -> Result<Arc<dyn Engine>, DataDirError> {
        database::open(path, options)
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
