//! Restricts access to a data directory to its owner.
//!
//! The directory has the node's key, an operator's credential, the cluster's authority and users' data, and machine
//! code that the node runs. It may have been created beforehand, by `mkdir`, as a volume or by a service manager,
//! with a mode that allows others to enter.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::Mode;

use super::error::DataDirError;

/// The permission bits of group and others.
const NOT_THE_OWNERS: u32 = 0o077;

/// Make this process create files that only its user can read or write.
pub fn keep_files_private() {
    rustix::process::umask(Mode::from_raw_mode(NOT_THE_OWNERS));
}

/// Remove the permissions of the group and of others from a data directory and everything in it, and return the
/// number of files and directories that had any. A missing directory is not an error.
///
/// # Errors
/// The directory belongs to another user, or a mode cannot be changed. Some modes may have been changed already.
pub fn make_private(path: &Path) -> Result<usize, DataDirError> {
    let failed = |path: &Path, source| DataDirError::Io { path: path.to_owned(), source };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed(path, error)),
    };
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(DataDirError::OtherOwner { path: path.to_owned(), owner: metadata.uid() });
    }
    let mut changed = 0;
    // The top directory is changed first, so that other users can no longer reach the files below.
    let mut waiting = vec![(path.to_owned(), metadata)];
    while let Some((path, metadata)) = waiting.pop() {
        if metadata.mode() & NOT_THE_OWNERS != 0 {
            let mode = metadata.mode() & !NOT_THE_OWNERS;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(|error| failed(&path, error))?;
            changed += 1;
        }
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).map_err(|error| failed(&path, error))?;
            for entry in entries {
                let entry = entry.map_err(|error| failed(&path, error))?;
                // Symbolic links are not followed, because their targets are not the node's.
                let metadata = entry.metadata().map_err(|error| failed(&entry.path(), error))?;
                if !metadata.is_symlink() {
                    waiting.push((entry.path(), metadata));
                }
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_that_others_can_enter_is_closed_with_all_that_is_in_it() {
        let place = tempfile::tempdir().unwrap();
        let (data, outside) = (place.path().join("data"), place.path().join("outside"));
        assert_eq!(make_private(&data).unwrap(), 0);
        fs::create_dir_all(data.join("db")).unwrap();
        fs::write(data.join("db/0.jnl"), "key").unwrap();
        fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, data.join("link")).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        set(&data, 0o777);
        set(&data.join("db"), 0o755);
        set(&data.join("db/0.jnl"), 0o644);
        set(&outside, 0o644);
        assert_eq!(make_private(&data).unwrap(), 3);
        let modes = [&data, &data.join("db"), &data.join("db/0.jnl"), &outside].map(|path| mode(path));
        assert_eq!(modes, [0o700, 0o700, 0o600, 0o644]);
        assert_eq!(make_private(&data).unwrap(), 0);
    }
}
