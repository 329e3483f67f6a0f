//! The preference list: whom a request for a partition may go to (R4, R6).
//!
//! A pure function of the ring and of who is up, so every node that sees the same gives the
//! same list. The replica set in its order, where each node that is down is replaced by a fallback;
//! liveness chooses fallbacks and never moves ownership (DESIGN.md D4).

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::keyspace::PartitionId;
use crate::ring::RingTable;

/// Why a node is on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rank {
    /// Of the replica set: it may answer.
    Primary,
    /// Stands in for a primary that is down: it holds, it does not answer (R6).
    Fallback,
}

/// One node of a preference list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preferred {
    /// Whom to ask.
    pub node: NodeId,
    /// As what.
    pub rank: Rank,
    /// The primary that a fallback stands in for; a primary stands for itself.
    pub instead_of: NodeId,
}

/// What placing a fallback needs to know of a node.
pub trait Nodes {
    /// Is it up, as far as this node knows?
    fn is_up(&self, node: NodeId) -> bool;
    /// Its failure domain, if it has one.
    fn zone(&self, _node: NodeId) -> Option<&str> {
        None
    }
}

impl<F: Fn(NodeId) -> bool> Nodes for F {
    fn is_up(&self, node: NodeId) -> bool {
        self(node)
    }
}

/// The preference list of a partition for a module with `n` replicas: as long as prefix(n) of its
/// set, or shorter where there are not enough nodes up. With n=1 there are no fallbacks (R6).
///
/// Fallbacks are the first nodes met on partitions p+1, p+2, ... that are up and not in the
/// whole replica set; those of zones where no other of the list lives come first.
pub fn preference_list(ring: &RingTable, id: PartitionId, n: usize, nodes: &impl Nodes) -> Vec<Preferred> {
    let replicas = &ring.partition(id).replicas;
    let primaries = &replicas[..n.min(replicas.len())];
    let down = primaries.iter().filter(|node| !nodes.is_up(**node)).count();
    let mut spare = if n > 1 && down > 0 { spares(ring, id, nodes) } else { Vec::new() };
    let mut list: Vec<Preferred> = Vec::with_capacity(primaries.len());
    let mut taken: Vec<&str> =
        primaries.iter().filter(|node| nodes.is_up(**node)).filter_map(|node| nodes.zone(*node)).collect();
    for primary in primaries {
        if nodes.is_up(*primary) {
            list.push(Preferred { node: *primary, rank: Rank::Primary, instead_of: *primary });
            continue;
        }
        let elsewhere = |node: &NodeId| nodes.zone(*node).is_none_or(|zone| !taken.contains(&zone));
        if spare.is_empty() {
            continue;
        }
        let node = spare.remove(spare.iter().position(elsewhere).unwrap_or(0));
        taken.extend(nodes.zone(node));
        list.push(Preferred { node, rank: Rank::Fallback, instead_of: *primary });
    }
    list
}

/// Every node that is up and not of the partition's set, in the order of the walk.
fn spares(ring: &RingTable, id: PartitionId, nodes: &impl Nodes) -> Vec<NodeId> {
    let replicas = &ring.partition(id).replicas;
    let (before, after) = ring.partitions.split_at(usize::from(id.0));
    let mut spares: Vec<NodeId> = Vec::new();
    for node in after[1..].iter().chain(before).flat_map(|partition| &partition.replicas) {
        if !replicas.contains(node) && !spares.contains(node) && nodes.is_up(*node) {
            spares.push(*node);
        }
    }
    spares
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::keyspace::RingSize;
    use crate::ring::Partition;

    fn ring(sets: [&[u64]; 8]) -> RingTable {
        let partition = |set: &&[u64]| Partition::held_by(set.iter().copied().map(NodeId).collect(), 1);
        RingTable {
            size: RingSize::try_from(8).unwrap(),
            epoch: 1,
            partitions: sets.iter().map(partition).collect(),
        }
    }

    fn list(ring: &RingTable, id: u16, n: usize, nodes: &impl Nodes) -> Vec<(u64, Rank)> {
        let list = preference_list(ring, PartitionId(id), n, nodes);
        list.into_iter().map(|one| (one.node.0, one.rank)).collect()
    }

    const RING: [&[u64]; 8] =
        [&[0, 1, 2], &[1, 2, 3], &[4, 5, 0], &[3, 4, 5], &[0, 1, 2], &[1, 2, 3], &[2, 3, 4], &[5, 0, 1]];

    #[test]
    fn everybody_up_is_the_replica_set() {
        let all = |_| true;
        assert_eq!(list(&ring(RING), 2, 2, &all), [(4, Rank::Primary), (5, Rank::Primary)]);
        assert_eq!(list(&ring(RING), 2, 9, &all).len(), 3);
    }

    #[test]
    fn who_is_down_is_replaced_in_place_by_the_walk_which_wraps() {
        let up = |node: NodeId| ![1, 2, 3].contains(&node.0);
        let expected = [(0, Rank::Primary), (4, Rank::Fallback), (5, Rank::Fallback)];
        assert_eq!(list(&ring(RING), 0, 3, &up), expected);
        let up = |node: NodeId| node.0 != 5;
        assert_eq!(
            list(&ring(RING), 7, 3, &up),
            [(2, Rank::Fallback), (0, Rank::Primary), (1, Rank::Primary)]
        );
    }

    #[test]
    fn a_fallback_is_never_of_the_whole_set_and_the_list_ends_where_nobody_is_left() {
        let up = |node: NodeId| node.0 > 0 && node.0 < 4;
        // 2 is of the set, though beyond prefix(2).
        assert_eq!(list(&ring(RING), 0, 2, &up), [(3, Rank::Fallback), (1, Rank::Primary)]);
        let up = |node: NodeId| node.0 == 2;
        assert_eq!(list(&ring(RING), 0, 3, &up), [(2, Rank::Primary)]);
    }

    #[test]
    fn one_replica_has_no_fallback() {
        assert_eq!(list(&ring(RING), 0, 1, &|node: NodeId| node.0 != 0), []);
    }

    struct Zoned;
    impl Nodes for Zoned {
        fn is_up(&self, node: NodeId) -> bool {
            node.0 != 1 && node.0 != 2
        }
        fn zone(&self, node: NodeId) -> Option<&str> {
            Some(["x", "y", "z", "x", "x", "y"][node.0 as usize])
        }
    }

    #[test]
    fn fallbacks_of_other_zones_come_first_and_then_any() {
        let expected = [(0, Rank::Primary), (5, Rank::Fallback), (3, Rank::Fallback)];
        assert_eq!(list(&ring(RING), 0, 3, &Zoned), expected);
    }
}
