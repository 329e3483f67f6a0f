//! Writes files that are replaced atomically and that only their owner can read.

use std::io::ErrorKind;
use std::path::Path;

use super::disk::{Access, Disk, Open};
use super::error::{DataDirError, corrupt};

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataDirError + '_ {
    |source| DataDirError::Io { path: path.to_owned(), source }
}

/// Create a directory that only its owner can enter, durably. An existing one is left unchanged.
pub(super) fn create_private_dir(disk: &Disk, path: &Path) -> Result<(), DataDirError> {
    disk.create_dir_durably(path, Access::Owner).map_err(io(path))
}

/// Replace a file by a new one (mode 0600), durably: written beside it, synced, renamed, and the rename synced
/// too.
pub(super) fn write_private(
    disk: &Disk,
    dir: &Path,
    name: &str,
    contents: &[u8],
) -> Result<(), DataDirError> {
    let path = dir.join(name);
    let beside = dir.join(format!("{name}.new"));
    // A file left by a crash may have other permissions.
    remove(disk, &beside)?;
    let mut file = disk.open(&beside, Open::Private).map_err(io(&beside))?;
    file.write_at(0, contents).and_then(|()| file.sync_all()).map_err(io(&beside))?;
    drop(file);
    disk.rename(&beside, &path).map_err(io(&path))?;
    sync_dir(disk, dir)
}

/// Read a file; `None` if it is missing.
pub(super) fn read(disk: &Disk, path: &Path) -> Result<Option<Vec<u8>>, DataDirError> {
    match disk.read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(path)(error)),
    }
}

/// Read a text file; `None` if it is missing.
pub(super) fn read_text(disk: &Disk, path: &Path) -> Result<Option<String>, DataDirError> {
    let Some(bytes) = read(disk, path)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| corrupt(path, "it is not text"))
}

/// Remove a file durably, if it exists.
pub(super) fn remove(disk: &Disk, path: &Path) -> Result<(), DataDirError> {
    match disk.remove(path) {
        Ok(()) => path.parent().map_or(Ok(()), |dir| sync_dir(disk, dir)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(path)(error)),
    }
}

/// Remove the marks of Raft's promises, which belong to the database.
pub(super) fn remove_marks(disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
    for entry in disk.list(dir).map_err(io(dir))? {
        let path = dir.join(entry.name);
        if path.extension().is_some_and(|extension| extension == "mark") {
            remove(disk, &path)?;
        }
    }
    Ok(())
}

/// Make creations, renames and removals in a directory durable.
pub(super) fn sync_dir(disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
    disk.sync_dir(dir).map_err(io(dir))
}
