//! The role of a node for a partition.
//!
//! A module with `n` replicas keeps a partition at the first `n` nodes of the partition's replica set, so roles are
//! determined per module. A replica set is never empty.

use crate::ids::NodeId;
use crate::keyspace::PartitionId;
use crate::ring::{Partition, RingTable};

/// The number of nodes that hold a partition of a module today, whatever `n` the module was deployed with: only
/// owners keep items until replication arrives.
pub const REPLICAS: usize = 1;

/// The role of a node for one partition of one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The first replica: it serves requests, and sends the partition's items in a handoff.
    Owner,
    /// A replica that is not the first.
    Replica,
    /// Not a replica yet: the pending transfer makes it one.
    Successor,
    /// None of these.
    Outsider,
}

impl Role {
    /// Return true if the node keeps the module's items of the partition.
    pub fn holds(self) -> bool {
        matches!(self, Self::Owner | Self::Replica)
    }
}

impl Partition {
    /// Return the owner: the first replica.
    pub fn owner(&self) -> NodeId {
        self.replicas[0]
    }

    /// Return the role of a node for a module with `n` replicas.
    pub fn role_of(&self, node: NodeId, n: usize) -> Role {
        match self.replicas.iter().take(n).position(|replica| *replica == node) {
            Some(0) => Role::Owner,
            Some(_) => Role::Replica,
            None if self.successors(n).any(|successor| successor == node) => Role::Successor,
            None => Role::Outsider,
        }
    }

    /// Return the nodes that the pending transfer makes replicas of a module with `n` replicas.
    pub fn successors(&self, n: usize) -> impl Iterator<Item = NodeId> {
        let target = self.pending.iter().flat_map(move |transfer| transfer.target.iter().take(n));
        target.copied().filter(move |node| !self.replicas.iter().take(n).any(|replica| replica == node))
    }

    /// Return the replicas of a module with `n` replicas that stay while the pending transfer makes their number smaller. They
    /// merge what the others have first (`quorum::Group::levels`).
    pub fn levellers(&self, n: usize) -> impl Iterator<Item = NodeId> {
        let set = &self.replicas[..self.replicas.len().min(n)];
        let target = self.pending.as_ref().map_or(&[][..], |transfer| &transfer.target[..]);
        let smaller = target.len() < set.len();
        set.iter().copied().filter(move |node| smaller && target.contains(node))
    }
}

impl RingTable {
    /// Return the owner of a partition.
    ///
    /// # Panics
    /// As [`RingTable::partition`].
    pub fn owner(&self, id: PartitionId) -> NodeId {
        self.partition(id).owner()
    }

    /// Return the role of a node for a partition of a module with `n` replicas. For a partition that is not in this
    /// ring, every node is an outsider.
    pub fn role_of(&self, node: NodeId, id: PartitionId, n: usize) -> Role {
        self.get(id).map_or(Role::Outsider, |partition| partition.role_of(node, n))
    }

    /// Return the partitions that a node owns, in order.
    pub fn owned_by(&self, node: NodeId) -> impl Iterator<Item = PartitionId> {
        self.iter().filter_map(move |(id, partition)| (partition.owner() == node).then_some(id))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::TransferId;
    use crate::keyspace::RingSize;
    use crate::ring::Transfer;

    fn moving(from: &[u64], to: &[u64]) -> Partition {
        let ids = |set: &[u64]| set.iter().copied().map(NodeId).collect::<Vec<_>>();
        let pending = (!to.is_empty()).then(|| Transfer::new(TransferId(9), ids(to)));
        Partition { pending, ..Partition::held_by(ids(from), 3) }
    }

    fn roles(partition: &Partition, n: usize) -> Vec<Role> {
        (1..=5).map(|node| partition.role_of(NodeId(node), n)).collect()
    }

    #[test]
    fn roles_follow_the_number_of_replicas_of_the_module() {
        use Role::{Outsider, Owner, Replica, Successor};
        let partition = moving(&[1, 2, 3], &[4, 1, 5]);
        assert_eq!(roles(&partition, 1), [Owner, Outsider, Outsider, Successor, Outsider]);
        assert_eq!(roles(&partition, 2), [Owner, Replica, Outsider, Successor, Outsider]);
        assert_eq!(roles(&partition, 3), [Owner, Replica, Replica, Successor, Successor]);
        assert_eq!(roles(&partition, 9), roles(&partition, 3));
        assert_eq!(roles(&moving(&[2, 1], &[]), 1), [Outsider, Owner, Outsider, Outsider, Outsider]);
    }

    #[test]
    fn a_transfer_behind_the_owner_has_no_successor_with_one_replica() {
        let partition = moving(&[1, 2], &[1, 3]);
        assert_eq!(partition.successors(1).count(), 0);
        assert_eq!(partition.successors(2).collect::<Vec<_>>(), [NodeId(3)]);
        // A replica that becomes the owner has the items of a module with two replicas already.
        assert_eq!(moving(&[1, 2], &[2, 1]).role_of(NodeId(2), 1), Role::Successor);
        assert_eq!(moving(&[1, 2], &[2, 1]).role_of(NodeId(2), 2), Role::Replica);
    }

    #[test]
    fn replicas_that_stay_in_a_smaller_set_level_their_items() {
        let levellers = |from: &[u64], to: &[u64], n| moving(from, to).levellers(n).collect::<Vec<_>>();
        assert_eq!(levellers(&[1, 2, 3], &[3, 1], 3), [NodeId(1), NodeId(3)]);
        assert_eq!(levellers(&[1, 2, 3], &[3, 1], 2), []);
        assert_eq!(levellers(&[1, 2, 3], &[3], 2), []);
        assert_eq!(levellers(&[1, 2, 3], &[4, 2], 3), [NodeId(2)]);
        assert_eq!(levellers(&[1, 2, 3], &[1, 2, 4], 3), []);
        assert_eq!(levellers(&[1, 2], &[], 2), []);
    }

    #[test]
    fn a_ring_lists_owners_by_partition() {
        let size = RingSize::try_from(8).unwrap();
        let mut partitions = vec![moving(&[1, 2], &[]); 8];
        partitions[5] = moving(&[2, 1], &[]);
        let ring = RingTable { size, epoch: 1, partitions };
        assert_eq!((ring.owner(PartitionId(4)), ring.owner(PartitionId(5))), (NodeId(1), NodeId(2)));
        assert_eq!(ring.owned_by(NodeId(2)).collect::<Vec<_>>(), [PartitionId(5)]);
        assert_eq!(ring.role_of(NodeId(1), PartitionId(5), 2), Role::Replica);
        assert_eq!(ring.role_of(NodeId(1), PartitionId(8), 2), Role::Outsider);
        assert!(Role::Replica.holds() && !Role::Successor.holds());
    }
}
