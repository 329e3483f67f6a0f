//! What the cluster does next by itself, as far as the committed state says: the claimant
//! proposes it, and every entry is checked again when its turn comes.

use crate::ids::NodeId;

use super::{ClusterState, MemberStatus};

impl ClusterState {
    /// A node that joins, has caught up with the log, and waits for no plan: it becomes a member.
    pub fn due_to_join(&self, caught_up: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let due = |member: &&super::Member| {
            member.status == MemberStatus::Joining && !member.waits() && caught_up(member.id)
        };
        self.live_members().find(due).map(|member| member.id)
    }

    /// The table that the ring should aim at, if it is another one than it aims at.
    pub fn due_table(&self) -> Option<Vec<Vec<NodeId>>> {
        (!self.is_balanced()).then(|| self.claimed_table())
    }

    /// A node that leaves, holds nothing any more, and does not vote: it goes.
    pub fn due_to_go(&self, votes: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let due = |member: &&super::Member| {
            member.status == MemberStatus::Leaving && !self.holds(member.id) && !votes(member.id)
        };
        self.live_members().find(due).map(|member| member.id)
    }
}
