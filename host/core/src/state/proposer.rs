//! The commands that a member may propose to the leader.
//!
//! Operators can ask any member, so most commands may come from any of them. What the leader decides itself, what a
//! node states about itself, and what only the owner of a partition may do, cannot come from somebody else.

use crate::ids::{NodeId, TransferId};
use crate::keyspace::PartitionId;

use super::{ClusterState, Command};

impl ClusterState {
    /// Return true if a member may propose a command to the leader. A command with a list that is allowed in part is
    /// not allowed.
    pub fn may_propose(&self, sender: NodeId, command: &Command) -> bool {
        match command {
            // The leader decides these by what it sees of the group.
            Command::Found { .. }
            | Command::Joined { .. }
            | Command::Rebalance { .. }
            | Command::Raise { .. } => false,
            Command::Moved { node, .. }
            | Command::Placed { node, .. }
            | Command::Lost { node, .. }
            | Command::Arrived { node, .. } => *node == sender,
            // Only the owner knows whether the items have arrived (R1).
            Command::Flip { transfers } => {
                transfers.iter().all(|(partition, transfer)| self.may_end(sender, *partition, *transfer))
            }
            Command::Cancel { partition, transfer } => self.may_end(sender, *partition, *transfer),
            // An operator, or a node that joins, may ask any member for these.
            Command::IssueToken { .. }
            | Command::Admit { .. }
            | Command::Leave { .. }
            | Command::Removed { .. }
            | Command::Deploy { .. }
            | Command::Rollback { .. }
            | Command::Undeploy { .. }
            | Command::Stage { .. }
            | Command::ClearStaged
            | Command::Commit { .. }
            | Command::Change { .. }
            | Command::Down { .. }
            | Command::Up { .. }
            | Command::Acknowledge { .. }
            | Command::SetHandoff { .. } => true,
        }
    }

    /// Return true if a node may end a transfer. A transfer that is over is nobody's.
    fn may_end(&self, sender: NodeId, partition: PartitionId, transfer: TransferId) -> bool {
        let is_there = usize::from(partition.0) < self.ring.partitions.len();
        !(is_there && self.is_pending(partition, transfer))
            || self.ring.partition(partition).owner() == sender
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::{ClusterId, Digest, NodeUid};
    use crate::keyspace::RingSize;
    use crate::state::{Machine, Member, MemberStatus};

    fn member(uid: u8) -> Member {
        Member {
            id: NodeId(0),
            uid: NodeUid([uid; 16]),
            name: format!("n{uid}@h"),
            listen: String::new(),
            http: String::new(),
            zone: None,
            weight: 1,
            status: MemberStatus::Joining,
            staged: false,
            banned: false,
            key: Some(Digest([uid; 32])),
        }
    }

    /// Return a state in which partitions move from node 0 to node 3, by a transfer with id 5.
    fn state() -> ClusterState {
        let mut machine = Machine::default();
        let token = Digest([7; 32]);
        let log = [
            Command::Found {
                cluster: ClusterId([1; 16]),
                ring_size: RingSize::try_from(8).unwrap(),
                width: 1,
                founder: member(1),
                authority: String::new(),
                authority_key: String::new(),
                level: crate::version::LEVEL,
            },
            Command::IssueToken { token, now_ms: 0, expires_ms: 9, uses: None },
            Command::Admit { member: member(2), token, now_ms: 1 },
            Command::Joined { node: NodeId(3) },
            Command::Rebalance { base: 1, table: vec![vec![NodeId(3)]; 8] },
        ];
        for (at, command) in log.iter().enumerate() {
            machine.apply(at as u64 + 1, command);
        }
        machine.state.unwrap()
    }

    #[test]
    fn only_the_owner_ends_a_transfer_and_a_node_speaks_for_itself() {
        let state = state();
        let (owner, taker) = (NodeId(0), NodeId(3));
        let (partition, transfer) = (PartitionId(2), TransferId(5));
        assert!(state.is_pending(partition, transfer));
        let flip = Command::Flip { transfers: vec![(partition, transfer)] };
        let cancel = Command::Cancel { partition, transfer };
        for command in [flip, cancel] {
            assert!(state.may_propose(owner, &command) && !state.may_propose(taker, &command), "{command:?}");
        }
        let over =
            Command::Flip { transfers: vec![(partition, TransferId(4)), (PartitionId(999), transfer)] };
        assert!(state.may_propose(taker, &over));
        let lost = |node| Command::Lost { node, partitions: vec![partition] };
        let moved = |node| Command::Moved { node, listen: String::new(), http: String::new() };
        let placed = |node| Command::Placed { node, zone: None, weight: Some(1000) };
        let arrived = |node| Command::Arrived { node, arrivals: Vec::new() };
        for command in [&lost as &dyn Fn(NodeId) -> Command, &moved, &placed, &arrived] {
            assert!(state.may_propose(taker, &command(taker)) && !state.may_propose(taker, &command(owner)));
        }
        for command in [
            Command::Joined { node: taker },
            Command::Rebalance { base: 5, table: Vec::new() },
            Command::Raise { level: 99, known: Vec::new() },
        ] {
            assert!(!state.may_propose(owner, &command), "{command:?}");
        }
        assert!(state.may_propose(taker, &Command::Leave { node: owner }));
    }
}
