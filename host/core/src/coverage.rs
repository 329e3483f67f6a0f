//! The coverage plan, which chooses the nodes to ask so that every partition is asked once.

use crate::ids::NodeId;
use crate::keyspace::PartitionId;
use crate::ring::RingTable;

/// A plan for one coverage command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoveragePlan {
    /// Every partition that can be covered, in order, with the node to ask.
    pub ask: Vec<(PartitionId, NodeId)>,
    /// Partitions that cannot be covered: no node of prefix(n) is up and complete (R5, R17).
    pub missing: Vec<PartitionId>,
}

/// Choose, for each partition, the first node of prefix(n) for which `can_answer` is true: it is up and its
/// store of the module is complete. Fallbacks are never asked (R6).
pub fn coverage_plan(
    ring: &RingTable,
    n: usize,
    mut can_answer: impl FnMut(PartitionId, NodeId) -> bool,
) -> CoveragePlan {
    let mut plan = CoveragePlan::default();
    for (id, partition) in ring.iter() {
        let prefix = &partition.replicas[..n.min(partition.replicas.len())];
        match prefix.iter().find(|node| can_answer(id, **node)) {
            Some(node) => plan.ask.push((id, *node)),
            None => plan.missing.push(id),
        }
    }
    plan
}

impl CoveragePlan {
    /// Group the plan by node, for one request to each; nodes are in the order of their first partition.
    pub fn by_node(&self) -> Vec<(NodeId, Vec<PartitionId>)> {
        let mut nodes: Vec<(NodeId, Vec<PartitionId>)> = Vec::new();
        for (id, node) in &self.ask {
            match nodes.iter_mut().find(|(known, _)| known == node) {
                Some((_, ids)) => ids.push(*id),
                None => nodes.push((*node, vec![*id])),
            }
        }
        nodes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::keyspace::RingSize;
    use crate::ring::Partition;

    fn ring() -> RingTable {
        let partition = |at: u64| Partition::held_by(vec![NodeId(at % 3), NodeId((at + 1) % 3)], 1);
        RingTable {
            size: RingSize::try_from(8).unwrap(),
            epoch: 1,
            partitions: (0..8).map(partition).collect(),
        }
    }

    #[test]
    fn each_partition_is_asked_once_at_its_owner() {
        let plan = coverage_plan(&ring(), 1, |_, _| true);
        assert_eq!(
            plan.ask.iter().map(|(id, node)| (id.0, node.0)).collect::<Vec<_>>(),
            [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 2), (6, 0), (7, 1)]
        );
        assert_eq!(plan.missing, []);
        let by_node: Vec<_> = plan.by_node().into_iter().map(|(node, ids)| (node.0, ids.len())).collect();
        assert_eq!(by_node, [(0, 3), (1, 3), (2, 2)]);
    }

    #[test]
    fn the_next_complete_replica_within_n_is_asked_if_the_owner_cannot_answer() {
        let up = |_: PartitionId, node: NodeId| node != NodeId(1);
        let plan = coverage_plan(&ring(), 2, up);
        assert!(plan.missing.is_empty());
        assert_eq!(plan.ask[1], (PartitionId(1), NodeId(2)));
        let plan = coverage_plan(&ring(), 1, up);
        assert_eq!(plan.missing, [1, 4, 7].map(PartitionId));
        assert_eq!(plan.ask.len(), 5);
        let building = |id: PartitionId, _: NodeId| id.0 != 6;
        assert_eq!(coverage_plan(&ring(), 2, building).missing, [PartitionId(6)]);
    }
}
