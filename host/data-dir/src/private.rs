//! Access to a data directory: its owner's alone.
//!
//! The directory has the node's key, an operator's credential, the cluster's authority and users' data, and machine
//! code that the node runs. It may have been made beforehand, by `mkdir`, as a volume or by a service manager, with
//! a mode that lets others in.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::Mode;

use super::error::DataDirError;

/// The bits of group and others.
const NOT_THE_OWNERS: u32 = 0o077;

/// Have this process make files that only its user can read or write.
pub fn keep_files_private() {
    rustix::process::umask(Mode::from_raw_mode(NOT_THE_OWNERS));
}

/// Take a data directory, and all that is in it, from its group and from others, and return how many files and
/// directories were open to them. A directory that is not there needs nothing.
///
/// # Errors
/// If the directory belongs to another user, or a mode cannot be changed. Modes may have been changed by then.
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
    // The top first: from then on nobody else gets to what is below.
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
                // Not through a symbolic link: what it leads to is not the node's.
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
