//! The commands that the committed state calls for. The claimant proposes them, and every entry is checked again
//! when it is applied.

use crate::ids::NodeId;

use super::{ClusterState, MemberStatus};

impl ClusterState {
    /// Return a joining node that has caught up and waits for no plan: it becomes a member.
    pub fn due_to_join(&self, caught_up: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let due = |member: &&super::Member| {
            member.status == MemberStatus::Joining && !member.waits() && caught_up(member.id)
        };
        self.live_members().find(due).map(|member| member.id)
    }

    /// Return the table that the ring should aim at, if it aims at another one.
    pub fn due_table(&self) -> Option<Vec<Vec<NodeId>>> {
        (!self.is_balanced()).then(|| self.claimed_table())
    }

    /// Return a leaving node that holds nothing and does not vote: it is removed.
    pub fn due_to_go(&self, votes: impl Fn(NodeId) -> bool) -> impl Iterator<Item = NodeId> {
        let due = move |member: &&super::Member| {
            member.status == MemberStatus::Leaving && !self.holds(member.id) && !votes(member.id)
        };
        self.live_members().filter(due).map(|member| member.id)
    }
}
