//! Files that are there whole or not at all, and that nobody else can read.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use super::DataDirError;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataDirError + '_ {
    |source| DataDirError::Io { path: path.to_owned(), source }
}

/// Makes a directory that only its owner can enter; leaves one that exists as it is.
pub(super) fn create_private_dir(path: &Path) -> Result<(), DataDirError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(io(path))
}

/// Replaces a file by a new one (mode 0600), durably: written beside it, synced, renamed, and
/// the rename synced too.
pub(super) fn write_private(dir: &Path, name: &str, contents: &[u8]) -> Result<(), DataDirError> {
    let path = dir.join(name);
    let beside = dir.join(format!("{name}.new"));
    // A left-over of a crash may have other permissions: begin anew.
    remove(&beside)?;
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside).map_err(io(&beside))?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(io(&beside))?;
    drop(file);
    fs::rename(&beside, &path).map_err(io(&path))?;
    sync_dir(dir)
}

/// Reads a file; `None` if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, DataDirError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(path)(error)),
    }
}

/// Reads a file of text; `None` if it is not there.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, DataDirError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| corrupt(path, "it is not text"))
}

/// Removes a file if it is there, durably.
pub(super) fn remove(path: &Path) -> Result<(), DataDirError> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(path)(error)),
    }
}

/// Removes the notes of what a database has promised, which goes too.
pub(super) fn remove_marks(dir: &Path) -> Result<(), DataDirError> {
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "mark") {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Makes what was created, renamed or removed in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), DataDirError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io(dir))
}

/// An error that names a damaged file.
pub(super) fn corrupt(path: &Path, reason: impl std::fmt::Display) -> DataDirError {
    DataDirError::Corrupt { path: path.to_owned(), reason: reason.to_string() }
}
