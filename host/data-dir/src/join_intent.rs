//! A join that survives a crash: first the request, then the cluster's reply (R18).

use std::path::Path;

use annulus_core::ids::NodeId;
use annulus_core::state::ClusterState;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::{DataDirError, corrupt};
use super::identity::Credentials;
use super::layout::JOIN;
use super::sealed;
use annulus_core::codec;

/// Progress of a join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinIntent {
    /// The node is asking. It is still a single-node cluster, and stays one if it is refused.
    Asking {
        /// Address of a member.
        address: String,
        /// The token as text.
        token: String,
        /// Wait for a committed plan before taking partitions.
        #[serde(default)]
        stage: bool,
        /// Discard the modules and items of the node's present cluster.
        #[serde(default)]
        discard: bool,
    },
    /// The cluster has admitted the node, so the join can only be completed.
    Admitted(Box<Admitted>),
}

/// A cluster's reply to a node that it admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Id of the node in the cluster.
    pub node: NodeId,
    /// PEM certificate chain, signed by the cluster's authority.
    pub certificate: String,
    /// PEM key of that certificate.
    pub key: String,
    /// The committed state, at or after the entry that admitted the node.
    pub state: ClusterState,
}

impl Admitted {
    /// Return the node's new credentials.
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
        let Some(bytes) = sealed::read_lenient(disk, dir, JOIN)? else { return Ok(None) };
        codec::decode(&bytes).map(Some).map_err(|error| corrupt(&dir.join(JOIN), error))
    }

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
        let bytes = codec::encode(self).map_err(|error| corrupt(&dir.join(JOIN), error))?;
        sealed::write_sealed(disk, dir, JOIN, &bytes)
    }
}
