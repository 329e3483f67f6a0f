//! Queries of the cluster's state.

use crate::claim::ClaimNode;
use crate::ids::{NodeId, NodeUid, TransferId};
use crate::keyspace::PartitionId;
use crate::ring::Transfer;

use super::{ClusterState, Member, MemberStatus, Module};

impl Member {
    /// Return true if the member is not removed: its certificate is valid and its name is taken.
    pub fn is_live(&self) -> bool {
        self.status != MemberStatus::Removed
    }

    /// Return true if the member may be given partitions. A node that is down keeps its share: liveness moves
    /// nothing.
    pub fn may_hold(&self) -> bool {
        matches!(self.status, MemberStatus::Member | MemberStatus::Down)
    }
}

impl ClusterState {
    /// Return a member that is not removed, by id.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node).filter(|member| member.is_live())
    }

    /// Return a member that is not removed, by `name@host`.
    pub fn member_by_name(&self, name: &str) -> Option<&Member> {
        self.live_members().find(|member| member.name == name)
    }

    /// Return the member of a data directory, removed or not: a removed node must be able to learn that it is
    /// removed (R3).
    pub fn member_by_uid(&self, uid: NodeUid) -> Option<&Member> {
        self.members.values().find(|member| member.uid == uid)
    }

    /// Iterate over the members that are not removed, by id.
    pub fn live_members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.is_live())
    }

    /// Return a deployed module by name.
    pub fn module_by_name(&self, name: &str) -> Option<&Module> {
        self.modules.values().find(|module| module.name == name)
    }

    /// Return true if the node is in any replica set, or will be by a pending change.
    pub fn holds(&self, node: NodeId) -> bool {
        self.ring.holds(node)
    }

    /// Return the pending change of a partition, if any.
    pub fn pending_of(&self, partition: PartitionId) -> Option<&Transfer> {
        self.ring.pending_of(partition)
    }

    /// Return true if exactly this transfer is pending.
    pub fn is_pending(&self, partition: PartitionId, transfer: TransferId) -> bool {
        self.pending_of(partition).is_some_and(|pending| pending.id == transfer)
    }

    /// Return the nodes that the claim distributes partitions over.
    pub fn claim_nodes(&self) -> Vec<ClaimNode> {
        let holders = self.live_members().filter(|member| member.may_hold());
        let node =
            |member: &Member| ClaimNode { id: member.id, weight: member.weight, zone: member.zone.clone() };
        holders.map(node).collect()
    }

    /// Return the table that the ring should have: that of a `Rebalance` on `ring.epoch`.
    pub fn claimed_table(&self) -> Vec<Vec<NodeId>> {
        self.table_from(&self.ring, &self.ring)
    }

    /// Return true if the ring has the claimed table, or transfers to it are pending.
    pub fn is_balanced(&self) -> bool {
        let targets = self.ring.iter().map(|(_, partition)| partition.target());
        targets.eq(self.claimed_table().iter().map(Vec::as_slice))
    }
}
