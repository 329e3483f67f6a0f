//! `admin.toml`: the address and credentials that the command line uses to reach a node.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::{DataDirError, corrupt};
use super::files::{read_text, write_private};

const FILE: &str = "admin.toml";

/// Contents of `admin.toml`. A user who can read the file is an operator of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminToml {
    /// UDP address of the node's QUIC endpoint.
    pub address: String,
    /// Id of the cluster.
    pub cluster: String,
    /// PEM certificates of the cluster's authorities.
    pub authorities: Vec<String>,
    /// PEM certificate chain of an operator.
    pub certificate: String,
    /// PEM key of that certificate.
    pub key: String,
}

impl AdminToml {
    /// Read the file of a data directory; `None` if it is missing. This needs no lock.
    pub fn read(dir: &Path) -> Result<Option<Self>, DataDirError> {
        Self::read_on(&Disk::real(), dir)
    }

    pub(super) fn read_on(disk: &Disk, dir: &Path) -> Result<Option<Self>, DataDirError> {
        let path = dir.join(FILE);
        let Some(text) = read_text(disk, &path)? else { return Ok(None) };
        toml::from_str(&text).map(Some).map_err(|error| corrupt(&path, error))
    }

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
        let text = toml::to_string(self).map_err(|error| corrupt(&dir.join(FILE), error))?;
        write_private(disk, dir, FILE, text.as_bytes())
    }
}
