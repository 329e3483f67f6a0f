//! The authority of a cluster that is being founded, kept until the cluster's state contains it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::DataDirError;
use super::layout::FOUNDING;
use super::sealed;

/// Data that must survive a crash between the creation of the identity and the commit of the first entry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// PEM certificate of the authority.
    pub authority: String,
    /// PEM key of that certificate.
    pub authority_key: String,
}

impl Founding {
    pub(super) fn read(disk: &Disk, dir: &Path) -> Result<Option<Self>, DataDirError> {
        sealed::read(disk, dir, FOUNDING)
    }

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
        sealed::write(disk, dir, FOUNDING, self)
    }
}
