//! A node's identity (`IDENTITY`), and the credentials that prove it.

use std::path::Path;

use annulus_core::ids::{ClusterId, NodeId, NodeUid};
use annulus_core::state::Lineage;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::{DataDirError, corrupt};
use super::layout::{HINTS_LAYOUT, IDENTITY, LAYOUT_VERSION};
use super::sealed;

const CERTIFICATE: &str = "node.pem";
const KEY: &str = "node.key";
const AUTHORITIES: &str = "authorities.pem";

/// The identity of the node that a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the data directory, from [`LAYOUT_VERSION`] to [`HINTS_LAYOUT`].
    pub layout: u64,
    /// `name@host`.
    pub name: String,
    /// The node's cluster.
    pub cluster: ClusterId,
    /// Id of the data directory.
    pub uid: NodeUid,
    /// Id of the node in that cluster.
    pub node: NodeId,
    /// Lineage of the cluster state that the node follows.
    #[serde(with = "lineage_text")]
    pub lineage: Lineage,
}

/// The text `number-id`, with the id in hex because it may exceed TOML's integers.
mod lineage_text {
    use annulus_core::state::Lineage;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(lineage: &Lineage, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&format_args!("{}-{:016x}", lineage.number, lineage.id))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Lineage, D::Error> {
        let text = String::deserialize(input)?;
        let parse = || {
            let (number, id) = text.split_once('-')?;
            Some(Lineage { number: number.parse().ok()?, id: u64::from_str_radix(id, 16).ok()? })
        };
        parse().ok_or_else(|| de::Error::custom(format!("{text:?} is not a lineage")))
    }
}

#[derive(Deserialize)]
struct Layout {
    layout: u64,
}

impl Identity {
    pub(super) fn read(disk: &Disk, dir: &Path) -> Result<Option<Self>, DataDirError> {
        let path = dir.join(IDENTITY);
        let Some(body) = sealed::read_body(disk, dir, IDENTITY)? else { return Ok(None) };
        // The version is read first, because another version may have other fields.
        let Layout { layout } = toml::from_str(&body).map_err(|error| corrupt(&path, error))?;
        if !(LAYOUT_VERSION..=HINTS_LAYOUT).contains(&layout) {
            return Err(DataDirError::OtherVersion { path, found: layout });
        }
        toml::from_str(&body).map(Some).map_err(|error| corrupt(&path, error))
    }

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
        sealed::write(disk, dir, IDENTITY, self)
    }
}

/// A node's certificate and the authorities that it trusts, all in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Certificate chain.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// Certificates of the authorities that the node trusts.
    pub authorities: Vec<String>,
}

// The implementation is not derived, because keys must not appear in logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn read(disk: &Disk, dir: &Path) -> Result<Self, DataDirError> {
        let pem = |name: &str| {
            let path = dir.join(name);
            let bytes =
                sealed::read_lenient(disk, dir, name)?.ok_or_else(|| DataDirError::Missing(path.clone()))?;
            let text = String::from_utf8(bytes).map_err(|_| corrupt(&path, "it is not text"))?;
            if text.contains("-----BEGIN ") && text.trim_end().ends_with("-----") {
                Ok(text)
            } else {
                Err(corrupt(&path, "it is not PEM"))
            }
        };
        let authorities = pem(AUTHORITIES)?;
        Ok(Self { certificate: pem(CERTIFICATE)?, key: pem(KEY)?, authorities: split_pem(&authorities) })
    }

    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> Result<(), DataDirError> {
        sealed::write_sealed(disk, dir, KEY, self.key.as_bytes())?;
        sealed::write_sealed(disk, dir, CERTIFICATE, self.certificate.as_bytes())?;
        Self::write_authorities(disk, dir, &self.authorities)
    }

    pub(super) fn write_authorities(
        disk: &Disk,
        dir: &Path,
        authorities: &[String],
    ) -> Result<(), DataDirError> {
        let text: String = authorities.iter().map(|pem| format!("{}\n", pem.trim())).collect();
        sealed::write_sealed(disk, dir, AUTHORITIES, text.as_bytes())
    }
}

/// Split a PEM file into one string per certificate.
fn split_pem(text: &str) -> Vec<String> {
    text.split_inclusive("-----END CERTIFICATE-----")
        .filter(|block| block.contains("-----BEGIN CERTIFICATE-----"))
        .map(|block| format!("{}\n", block.trim()))
        .collect()
}
