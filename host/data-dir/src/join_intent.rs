//! A join that survives a crash: first what is wanted, then what the cluster answered (R18).

use std::path::Path;

use annulus_core::ids::NodeId;
use annulus_core::state::ClusterState;
use serde::{Deserialize, Serialize};

use super::files::corrupt;
use super::{Credentials, DataDirError, Disk, sealed};
use annulus_core::codec;

pub(super) const FILE: &str = "JOIN";

/// Where a join stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinIntent {
    /// The cluster is being asked. The node is still its own cluster of one, and stays it if the
    /// answer is no.
    Asking {
        /// A member's address.
        address: String,
        /// The token as it was typed.
        token: String,
        /// It is to wait there for a plan.
        #[serde(default)]
        stage: bool,
        /// The modules and items of its own cluster are given up.
        #[serde(default)]
        discard: bool,
    },
    /// The cluster has answered: there is no way back, only through.
    Admitted(Box<Admitted>),
}

/// What a cluster answers to a node that it admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// What the node is called from now on.
    pub node: NodeId,
    /// PEM certificate chain, signed by the cluster's authority.
    pub certificate: String,
    /// PEM key of it.
    pub key: String,
    /// The cluster's state, of an entry at or after the one that admitted the node.
    pub state: ClusterState,
}

impl Admitted {
    /// The node's new credentials.
    pub fn credentials(&self) -> Credentials {
        Credentials {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authorities: self.state.authorities.clone(),
        }
    }
}

impl JoinIntent {
    pub(super) fn read(disk: &Disk, dir: &Path) -> Result<Option<Self>, DataDirError> {
        let Some(bytes) = sealed::read_lenient(disk, dir, FILE)? else { return Ok(None) };
        codec::decode(&bytes).map(Some).map_err(|error| corrupt(&dir.join(FILE), error))
    }

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
        let bytes = codec::encode(self).map_err(|error| corrupt(&dir.join(FILE), error))?;
        sealed::write_sealed(disk, dir, FILE, &bytes)
    }
}
