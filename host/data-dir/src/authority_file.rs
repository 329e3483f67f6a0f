//! `authority.key`: the private key of the cluster's authority, on the nodes that vote (R20).
//!
//! Whoever has the key can make a certificate for any node and any operator. It is in no log, state or snapshot, which
//! every node stores; voters receive it when they become voters, and remove it when they no longer vote.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::DataDirError;
use super::{files, sealed};

const FILE: &str = "authority.key";

/// An authority with its key. `Debug` is not derived, because keys must not appear in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityKey {
    /// PEM certificate of the authority.
    pub certificate: String,
    /// PEM key of that certificate.
    pub key: String,
}

impl std::fmt::Debug for AuthorityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityKey").finish_non_exhaustive()
    }
}

/// The file of the authority's key in a data directory. Only its owner can read it.
#[derive(Clone, Debug)]
pub struct AuthorityFile {
    disk: Disk,
    dir: PathBuf,
}

impl AuthorityFile {
    /// Return the file of a directory. It need not exist.
    pub fn new(disk: Disk, dir: PathBuf) -> Self {
        Self { disk, dir }
    }

    /// Read the file; `None` if it is missing.
    pub fn read(&self) -> Result<Option<AuthorityKey>, DataDirError> {
        sealed::read(&self.disk, &self.dir, FILE)
    }

    /// Write the file durably.
    pub fn write(&self, key: &AuthorityKey) -> Result<(), DataDirError> {
        sealed::write(&self.disk, &self.dir, FILE, key)
    }

    /// Remove the file durably, if it exists.
    pub fn remove(&self) -> Result<(), DataDirError> {
        files::remove(&self.disk, &self.dir.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_key_is_stored_for_its_owner_alone_and_removed() {
        use std::os::unix::fs::PermissionsExt;

        let place = tempfile::tempdir().unwrap();
        let file = AuthorityFile::new(Disk::real(), place.path().to_owned());
        assert_eq!(file.read().unwrap(), None);
        file.remove().unwrap();
        let key = AuthorityKey { certificate: "certificate\n".into(), key: "secret\n".into() };
        file.write(&key).unwrap();
        assert_eq!(file.read().unwrap(), Some(key.clone()));
        let mode = std::fs::metadata(place.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{key:?}").contains("secret"));
        std::fs::write(place.path().join(FILE), "certificate = 1\n").unwrap();
        assert!(file.read().is_err(), "a damaged file is no authority");
        file.remove().unwrap();
        assert_eq!(file.read().unwrap(), None);
    }
}
