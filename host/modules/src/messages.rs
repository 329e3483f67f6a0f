//! What nodes say to each other about modules (CBOR on the control lane).

use annulus_core::ids::{Digest, ModuleUid};
use serde::{Deserialize, Serialize};

/// Get a component, validate and compile it; nothing switches yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Prepare {
    /// The component.
    pub(super) digest: Digest,
    /// CBOR map for the trial `init`.
    #[serde(with = "serde_bytes")]
    pub(super) config: Vec<u8>,
    /// Raft id of a node that has it.
    pub(super) from: u64,
    /// The release's call limit in milliseconds, if it has one of its own.
    #[serde(default)]
    pub(super) call_ms: Option<u64>,
}

/// Tell when a module runs at this version or later, or has failed to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AwaitRunning {
    /// Which module.
    pub(super) module: ModuleUid,
    /// Which release of it.
    pub(super) version: u64,
    /// How long to wait before answering what there is, in milliseconds.
    pub(super) wait_ms: u64,
}

/// How far a node is with one module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The release that its vnodes run (those of `failures` excepted); 0 for none yet.
    pub version: u64,
    /// The component of that release.
    pub digest: Option<Digest>,
    /// The release that could not be had, or not be swapped to, and why.
    pub failed: Option<(u64, String)>,
    /// Items carried over by the last swap.
    pub swapped_items: u64,
    /// The longest that a vnode stood still in the last swap, in microseconds.
    pub longest_stall_us: u64,
    /// Partitions whose guest ended within the last swap, and took with it what it kept in memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<u16>,
}
