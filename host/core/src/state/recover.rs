//! The initial state of a recovery, after the majority of the voters was lost for good (R19).

use crate::ids::{NodeId, TransferId};
use crate::keyspace::PartitionId;

use super::{ClusterState, Lineage, Loss};

/// The number of low bits of an index that one lineage may use. The bits above them hold the lineage's number.
const LINEAGE_BITS: u32 = 44;
/// The number of the lowest bits, which count the entries. The other low bits come from the lineage's random id.
const ENTRY_BITS: u32 = 16;

impl Lineage {
    /// Return the next lineage; `id` is random.
    pub fn next(self, id: u64) -> Self {
        Self { number: self.number + 1, id }
    }

    /// Return the first index of its log.
    ///
    /// Nodes, modules and transfers are named by the index that made them, and the lost log may have used the next
    /// indices already. So a lineage has indices that neither the previous one nor a rival of the same number uses.
    /// Of two lineages the higher one has the higher indices, because the data path compares only versions, which are
    /// indices (R2).
    pub fn first_index(self) -> u64 {
        let apart = self.id >> (u64::BITS - LINEAGE_BITS + ENTRY_BITS);
        self.number << LINEAGE_BITS | apart << ENTRY_BITS
    }
}

/// The answer of one node that was asked for the newest state that it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The node.
    pub node: NodeId,
    /// Its copy of the state.
    pub state: ClusterState,
}

/// The facts that a recovery assumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The newest state that was found.
    pub state: ClusterState,
    /// The node that had it.
    pub from: NodeId,
    /// The nodes that answered with an older one, with its lineage and index.
    pub behind: Vec<(NodeId, Lineage, u64)>,
    /// The members that answered.
    pub answered: Vec<NodeId>,
    /// The members that did not answer, assumed lost until they answer again.
    pub lost: Vec<NodeId>,
    /// The partitions whose owner is among the lost.
    pub without_owner: Vec<PartitionId>,
    /// The transfers that are cancelled; their partitions stay with the owner.
    pub cancelled: Vec<(PartitionId, TransferId)>,
}

impl Recovery {
    /// Combine the answers; `None` without any.
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
    /// Return the initial state of a new lineage, which is newer than this state's lineage and than `heard`; `id` is
    /// random.
    ///
    /// Members, ring and modules stay, and all transfers are cancelled. Every partition gets the new lineage's
    /// version, so that no node sends or serves requests by an older state (R2). The partitions owned by nodes in
    /// `lost` are recorded as possible losses.
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
        state.check();
        state
    }
}
