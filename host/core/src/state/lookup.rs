//! Questions to the cluster's state.

use crate::ids::{NodeId, NodeUid, TransferId};
use crate::keyspace::PartitionId;
use crate::ring::Transfer;

use super::{ClusterState, Member, MemberStatus, Module};

impl Member {
    /// Not removed: its certificate is good, its name taken.
    pub fn is_live(&self) -> bool {
        self.status != MemberStatus::Removed
    }
}

impl ClusterState {
    /// A member that is not removed, by id.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node).filter(|member| member.is_live())
    }

    /// A member that is not removed, by `name@host`.
    pub fn member_by_name(&self, name: &str) -> Option<&Member> {
        self.live_members().find(|member| member.name == name)
    }

    /// The member of a data directory, removed or not: a removed one must be told so (R3).
    pub fn member_by_uid(&self, uid: NodeUid) -> Option<&Member> {
        self.members.values().find(|member| member.uid == uid)
    }

    /// Every member that is not removed, by id.
    pub fn live_members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.is_live())
    }

    /// A deployed module by name.
    pub fn module_by_name(&self, name: &str) -> Option<&Module> {
        self.modules.values().find(|module| module.name == name)
    }

    /// Is the node in any replica set, or in one to come?
    pub fn holds(&self, node: NodeId) -> bool {
        self.ring.holds(node)
    }

    /// The change of a partition that is under way, if any.
    pub fn pending_of(&self, partition: PartitionId) -> Option<&Transfer> {
        self.ring.pending_of(partition)
    }

    /// Is exactly this transfer still under way?
    pub fn is_pending(&self, partition: PartitionId, transfer: TransferId) -> bool {
        self.pending_of(partition).is_some_and(|pending| pending.id == transfer)
    }
}
