//! Sets the files of a damaged node aside, so that a new node can use the directory and nothing is lost.

use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::error::DataDirError;
use super::files::{create_private_dir, sync_dir};
use super::layout::{IDENTITY, LOCK};

const ASIDE: &str = "set-aside-";

/// Move everything but the lock and earlier set-aside directories into a new subdirectory.
///
/// `IDENTITY` is moved first, so that a crash before the end leaves a directory without a node, and the next
/// call continues.
pub(super) fn set_aside(disk: &Disk, dir: &Path) -> Result<Option<PathBuf>, DataDirError> {
    let io = |path: &Path, source| DataDirError::Io { path: path.to_owned(), source };
    let mut names = Vec::new();
    let mut last = 0;
    for entry in disk.list(dir).map_err(|source| io(dir, source))? {
        let name = entry.name;
        match name.to_str().and_then(|name| name.strip_prefix(ASIDE)) {
            Some(number) => last = last.max(number.parse().unwrap_or(0)),
            None if name == LOCK => {}
            None => names.push(name),
        }
    }
    if names.is_empty() {
        return Ok(None);
    }
    names.sort_by_key(|name| (name != IDENTITY, name.clone()));
    let aside = dir.join(format!("{ASIDE}{}", last + 1));
    create_private_dir(disk, &aside)?;
    for name in names {
        let from = dir.join(&name);
        disk.rename(&from, &aside.join(&name)).map_err(|source| io(&from, source))?;
    }
    sync_dir(disk, &aside)?;
    sync_dir(disk, dir)?;
    Ok(Some(aside))
}
