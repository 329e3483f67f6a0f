//! Output of `recover`, and the basis that an operator confirms.

use annulus_core::ids::NodeId;
use annulus_core::state::Lineage;
use serde::{Deserialize, Serialize};

/// The view of the cluster that an operator has confirmed. The recovery is refused if it no longer holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// Lineage of the newest state.
    pub lineage: Lineage,
    /// Index of the last change in that state.
    pub index: u64,
    /// Members that answered.
    pub answered: Vec<NodeId>,
}

/// Output of `recover`: its assumptions and, once done, its effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverRow {
    /// True if the recovery was carried out; otherwise the row only shows its consequences.
    pub done: bool,
    /// True if no majority of the voters is reachable, so that there is something to recover from.
    pub needed: bool,
    /// Name of the node that has the newest copy of the state.
    pub from: String,
    /// Index of the last change in that copy. Later changes, if there were any, are lost.
    pub index: u64,
    /// Survivors with an older copy: name and index.
    pub behind: Vec<(String, u64)>,
    /// Names of the survivors.
    pub answered: Vec<String>,
    /// Names of the members that did not answer and are taken for lost.
    pub lost: Vec<String>,
    /// Partitions whose owner is lost. They are unavailable until the owner is back or is removed.
    pub without_owner: Vec<u16>,
    /// Partitions whose transfer is cancelled. They stay with their present owner.
    pub cancelled: Vec<u16>,
    /// Number of the lineage that the recovery starts, which is one more than that of the newest state.
    pub lineage: u64,
    /// Survivors that have already adopted the new lineage; empty if the recovery was not carried out.
    pub adopted: Vec<String>,
    /// Basis to send back as the confirmation.
    pub basis: Basis,
}
