//! What `recover` shows, and what it goes back to.

use annulus_core::ids::NodeId;
use annulus_core::state::Lineage;
use serde::{Deserialize, Serialize};

/// What an operator has seen of the cluster when saying yes: the recovery is refused if it is no
/// longer so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// History of the state that is taken.
    pub lineage: Lineage,
    /// Its index.
    pub index: u64,
    /// Who answered.
    pub answered: Vec<NodeId>,
}

/// `recover`: what it assumes, and what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverRow {
    /// Was it done? Else this is what it would mean.
    pub done: bool,
    /// Is there something to recover: is no majority of the voters heard from?
    pub needed: bool,
    /// Node whose copy of the state is the newest.
    pub from: String,
    /// Index of the last change in it. Changes behind that, if there were any, are forgotten.
    pub index: u64,
    /// Survivors that know less: name and index.
    pub behind: Vec<(String, u64)>,
    /// Survivors.
    pub answered: Vec<String>,
    /// Members that do not answer and are taken for lost.
    pub lost: Vec<String>,
    /// Partitions whose owner is lost: they answer nothing until it is back, or is removed.
    pub without_owner: Vec<u16>,
    /// Partitions whose transfer is given up: they stay where they are.
    pub cancelled: Vec<u16>,
    /// How often the cluster was recovered, this time included.
    pub lineage: u64,
    /// Where it was done: survivors that go by it already.
    pub adopted: Vec<String>,
    /// To be sent back with the yes.
    pub basis: Basis,
}
