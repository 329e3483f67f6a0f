//! The authority of a cluster that is being founded, until the cluster's own state holds it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{DataDirError, Disk, sealed};

pub(super) const FILE: &str = "FOUNDING";

/// What a crash between making an identity and committing the first entry must not lose.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// PEM certificate of the authority.
    pub authority: String,
    /// PEM key of it.
    pub authority_key: String,
}

impl Founding {
    pub(super) fn read(disk: &Disk, dir: &Path) -> Result<Option<Self>, DataDirError> {
        sealed::read(disk, dir, FILE)
    }

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
        sealed::write(disk, dir, FILE, self)
    }
}
