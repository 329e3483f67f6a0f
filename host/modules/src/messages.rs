//! Messages between nodes about modules (CBOR on the control lane).

use annulus_core::ids::{Digest, ModuleUid};
use serde::{Deserialize, Serialize};

/// Request to fetch, validate and compile a component. No vnode is swapped yet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Prepare {
    /// Digest of the component.
    pub(super) digest: Digest,
    /// CBOR map for the trial `init`.
    #[serde(with = "serde_bytes")]
    pub(super) config: Vec<u8>,
    /// Raft id of a node that has the component.
    pub(super) from: u64,
    /// Call limit of the release in milliseconds; absent if the release uses the host's default.
    #[serde(default)]
    pub(super) call_ms: Option<u64>,
}

/// Request to answer once the node runs a module at `version` or later, or has failed to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AwaitRunning {
    /// The module to wait for.
    pub(super) module: ModuleUid,
    /// Version to wait for; 0 is reached by any release.
    pub(super) version: u64,
    /// Longest wait in milliseconds, after which the current progress is the answer.
    pub(super) wait_ms: u64,
}

/// Progress of one node with one module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The version that the node's vnodes run; 0 if it runs none yet. A swap that has only partly succeeded
    /// does not change it.
    pub version: u64,
    /// Component of that version.
    pub digest: Option<Digest>,
    /// The version that could not be fetched, started or swapped to, with the reason.
    pub failed: Option<(u64, String)>,
    /// Number of items carried over by the last swap.
    pub swapped_items: u64,
    /// Longest pause of one vnode in the last swap, in microseconds.
    pub longest_stall_us: u64,
    /// Partitions whose old guest ended during the last swap, so that the items that it kept in memory are
    /// lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<u16>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use annulus_core::codec::{decode, encode};
    use annulus_core::junk::{Target, attack, done};

    use super::*;

    #[test]
    fn no_bytes_make_a_message_panic() {
        let prepare = Prepare { digest: Digest([1; 32]), config: vec![0xa0], from: 1, call_ms: Some(5) };
        let wait = AwaitRunning { module: ModuleUid(1), version: 2, wait_ms: 3 };
        let running = Running { failed: Some((1, "why".into())), lost: vec![1], ..Running::default() };
        let prepared: Result<(), String> = Err("why".into());
        attack(&[
            Target {
                name: "Prepare",
                valid: vec![encode(&prepare).unwrap()],
                decode: |bytes| done(decode::<Prepare>(bytes)),
            },
            Target {
                name: "AwaitRunning",
                valid: vec![encode(&wait).unwrap()],
                decode: |bytes| done(decode::<AwaitRunning>(bytes)),
            },
            Target {
                name: "Running",
                valid: vec![encode(&running).unwrap()],
                decode: |bytes| done(decode::<Running>(bytes)),
            },
            Target {
                name: "Digest, and the answer to Prepare",
                valid: vec![encode(&Digest([1; 32])).unwrap(), encode(&prepared).unwrap()],
                decode: |bytes| done((decode::<Digest>(bytes), decode::<Result<(), String>>(bytes))),
            },
        ]);
    }
}
