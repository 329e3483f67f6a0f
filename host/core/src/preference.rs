//! The preference list: the nodes that a request for a partition may go to (R4, R6).
//!
//! The list is a pure function of the ring and of the nodes that are up. It is the replica set in its order, with
//! each node that is down replaced by a fallback. Liveness chooses fallbacks and never moves ownership (DESIGN.md
//! D4).

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::keyspace::PartitionId;
use crate::ring::RingTable;

/// The rank of a node on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rank {
    /// A node of the replica set, which may answer.
    Primary,
    /// A substitute for a primary that is down: it keeps writes for the primary, and does not answer (R6).
    Fallback,
}

/// One node of a preference list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preferred {
    /// The node to ask.
    pub node: NodeId,
    /// Its rank.
    pub rank: Rank,
    /// The primary that a fallback replaces; for a primary, the node itself.
    pub instead_of: NodeId,
}

/// The properties of nodes that decide on fallbacks.
pub trait Nodes {
    /// Return true if the node is up, as far as this node knows.
    fn is_up(&self, node: NodeId) -> bool;
    /// Return the failure domain of the node, if it has one.
    fn zone(&self, _node: NodeId) -> Option<&str> {
        None
    }
}

impl<F: Fn(NodeId) -> bool> Nodes for F {
    fn is_up(&self, node: NodeId) -> bool {
        self(node)
    }
}

/// Return the preference list of a partition for a module with `n` replicas. It has the first `n` nodes of the
/// replica set or their fallbacks, or fewer if not enough nodes are up. With n=1 it has no fallbacks (R6).
///
/// Fallbacks are the first nodes on partitions p+1, p+2, ... that are up and not in the replica set. Nodes in zones
/// without a node of the list come first.
pub fn preference_list(ring: &RingTable, id: PartitionId, n: usize, nodes: &impl Nodes) -> Vec<Preferred> {
    let replicas = &ring.partition(id).replicas;
    let primaries = &replicas[..n.min(replicas.len())];
    let down = primaries.iter().filter(|node| !nodes.is_up(**node)).count();
    let mut spare = if n > 1 && down > 0 { spares(ring, id, n, nodes) } else { Vec::new() };
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

/// Return the nodes that may keep a write instead of a replica that cannot be reached, the best first (R6): those that are up
/// and neither in the partition's replica set nor in its pending one. The order is that of [`preference_list`].
pub fn fallbacks(ring: &RingTable, id: PartitionId, n: usize, nodes: &impl Nodes) -> Vec<NodeId> {
    let partition = ring.partition(id);
    let set = &partition.replicas[..n.min(partition.replicas.len())];
    let mut spares = spares(ring, id, n, nodes);
    spares.retain(|node| !partition.target().iter().take(n).any(|comer| comer == node));
    let taken: Vec<&str> =
        set.iter().filter(|node| nodes.is_up(**node)).filter_map(|node| nodes.zone(*node)).collect();
    let elsewhere = |node: &NodeId| nodes.zone(*node).is_none_or(|zone| !taken.contains(&zone));
    // A stable sort: among equals, the order of the partitions decides.
    spares.sort_by_key(|node| !elsewhere(node));
    spares
}

/// Return the nodes that are up and not in the partition's replica set, in the order of the partitions that follow.
fn spares(ring: &RingTable, id: PartitionId, n: usize, nodes: &impl Nodes) -> Vec<NodeId> {
    let replicas = &ring.partition(id).replicas;
    let replicas = &replicas[..n.min(replicas.len())];
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
    fn with_all_nodes_up_the_list_is_the_replica_set() {
        let all = |_| true;
        assert_eq!(list(&ring(RING), 2, 2, &all), [(4, Rank::Primary), (5, Rank::Primary)]);
        assert_eq!(list(&ring(RING), 2, 9, &all).len(), 3);
    }

    #[test]
    fn a_down_node_is_replaced_in_place_by_the_next_nodes_around_the_ring() {
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
    fn a_fallback_is_never_in_the_replica_set_and_the_list_ends_when_no_node_is_left() {
        let up = |node: NodeId| node.0 > 0 && node.0 < 4;
        // Node 2 is beyond prefix(2), and so none of the module's replicas.
        assert_eq!(list(&ring(RING), 0, 2, &up), [(2, Rank::Fallback), (1, Rank::Primary)]);
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

    #[test]
    fn fallbacks_are_up_in_no_set_of_the_partition_and_from_other_zones_first() {
        let mut ring = ring(RING);
        let found = |ring: &RingTable, up: fn(NodeId) -> bool| {
            fallbacks(ring, PartitionId(0), 3, &up).iter().map(|node| node.0).collect::<Vec<_>>()
        };
        assert_eq!(found(&ring, |node| node.0 != 1), [3, 4, 5]);
        assert_eq!(found(&ring, |node| ![1, 4].contains(&node.0)), [3, 5]);
        // One that the partition moves to gets the write as such.
        let target = [0, 1, 3].map(NodeId).to_vec();
        ring.partitions[0].pending = Some(crate::ring::Transfer::new(crate::ids::TransferId(9), target));
        assert_eq!(found(&ring, |node| node.0 != 1), [4, 5]);
        ring.partitions[0].pending = None;
        assert_eq!(fallbacks(&ring, PartitionId(0), 3, &Zoned)[..2], [NodeId(5), NodeId(3)]);
    }
}
