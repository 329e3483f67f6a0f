//! What a recovery begins with, after the majority of the voters was lost for good (R19).

use crate::ids::{NodeId, TransferId};
use crate::keyspace::PartitionId;

use super::{ClusterState, Lineage, Loss};

/// Bits of an index that count the entries of one lineage.
const LINEAGE_BITS: u32 = 44;
/// The lowest of those are its entries, the others come from its random id.
const ENTRY_BITS: u32 = 16;

impl Lineage {
    /// The one that follows; `id` is random.
    pub fn next(self, id: u64) -> Self {
        Self { number: self.number + 1, id }
    }

    /// The index that its log begins at.
    ///
    /// Nodes, modules and transfers are named by the index that made them, and what was lost may
    /// have given the next ones already: so a lineage has indices that neither the one before nor a
    /// rival of the same number ever gives. Of two lineages the higher has the higher indices:
    /// versions, which are indices, are all that the data path compares (R2).
    pub fn first_index(self) -> u64 {
        let apart = self.id >> (u64::BITS - LINEAGE_BITS + ENTRY_BITS);
        self.number << LINEAGE_BITS | apart << ENTRY_BITS
    }
}

/// What one node answers when it is asked for the newest state that it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who.
    pub node: NodeId,
    /// Its copy.
    pub state: ClusterState,
}

/// What a recovery takes for true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The newest state of all that were found.
    pub state: ClusterState,
    /// Who had it.
    pub from: NodeId,
    /// Who answered with an older one, and how old.
    pub behind: Vec<(NodeId, Lineage, u64)>,
    /// Members that answered.
    pub answered: Vec<NodeId>,
    /// Members that did not: taken for lost until they are heard of again.
    pub lost: Vec<NodeId>,
    /// Partitions whose owner is among them.
    pub without_owner: Vec<PartitionId>,
    /// Transfers that are given up; their partitions stay with the owner.
    pub cancelled: Vec<(PartitionId, TransferId)>,
}

impl Recovery {
    /// Puts the answers together; `None` without any.
    pub fn from_answers(answers: Vec<Answer>) -> Option<Self> {
        let order = |answer: &Answer| (answer.state.lineage, answer.state.applied);
        let newest = answers.iter().max_by_key(|answer| (order(answer), std::cmp::Reverse(answer.node)))?;
        let state = newest.state.clone();
        let from = newest.node;
        let behind = answers.iter().filter(|answer| order(answer) < order(newest));
        let behind = behind.map(|a| (a.node, a.state.lineage, a.state.applied)).collect();
        let (answered, lost): (Vec<NodeId>, Vec<NodeId>) = state
            .live_members()
            .map(|member| member.id)
            .partition(|id| answers.iter().any(|answer| answer.node == *id));
        let gone = |node: &NodeId| lost.contains(node) || state.member(*node).is_none();
        let ring = state.ring.iter();
        let without_owner =
            ring.filter(|(_, partition)| gone(&partition.owner())).map(|(id, _)| id).collect();
        let cancelled = state.ring.transfers().map(|(id, transfer)| (id, transfer.id)).collect();
        Some(Self { from, behind, answered, lost, without_owner, cancelled, state })
    }
}

impl ClusterState {
    /// The state that a new lineage begins with, newer than this one and than one that was heard of; `id` is random.
    ///
    /// Members, ring and modules stay. Nothing moves any more: who was to give a partition keeps
    /// it. Every partition gets the new lineage's version, so that nobody who goes by an older
    /// truth is served, or serves, by it (R2). What the owners in `lost` held may be gone, and is noted.
    pub fn recovered(&self, heard: Lineage, id: u64, lost: &[NodeId]) -> Self {
        let mut state = self.clone();
        state.lineage = self.lineage.max(heard).next(id);
        let index = state.lineage.first_index();
        state.applied = index;
        state.ring.epoch = index;
        for partition in &mut state.ring.partitions {
            partition.pending = None;
            partition.version = index;
        }
        let owners = self.ring.iter().map(|(id, partition)| (id, partition.owner()));
        for (id, node) in owners.filter(|(_, owner)| lost.contains(owner)) {
            let name = self.members.get(&node).map_or_else(String::new, |member| member.name.clone());
            state.losses.insert(id, Loss { node, name, index });
        }
        state
    }
}
