//! The pairs of sender and receiver when a replica set changes (R4).

use crate::ids::NodeId;

/// One stream of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The node that sends.
    pub from: NodeId,
    /// The node that replaces the sender, or becomes a further replica.
    pub to: NodeId,
}

/// Return the streams for a module with `n` replicas, from the first `n` nodes of the old set to the first `n` of the
/// new. A node in both sets has no stream. Each leaver is paired with a successor, in order. A further successor gets
/// the items from the old owner; a further leaver hands off to all nodes of the new set, which may lack some of its
/// items.
pub fn pairs(old: &[NodeId], new: &[NodeId], n: usize) -> Vec<Pair> {
    let (old, new) = (&old[..n.min(old.len())], &new[..n.min(new.len())]);
    let leavers: Vec<NodeId> = old.iter().copied().filter(|node| !new.contains(node)).collect();
    let comers: Vec<NodeId> = new.iter().copied().filter(|node| !old.contains(node)).collect();
    let mut pairs: Vec<Pair> =
        leavers.iter().zip(&comers).map(|(from, to)| Pair { from: *from, to: *to }).collect();
    for to in comers.iter().skip(leavers.len()) {
        pairs.extend(old.first().map(|from| Pair { from: *from, to: *to }));
    }
    for from in leavers.iter().skip(comers.len()) {
        pairs.extend(new.iter().map(|to| Pair { from: *from, to: *to }));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(old: &[u64], new: &[u64], n: usize) -> Vec<(u64, u64)> {
        let ids = |set: &[u64]| set.iter().copied().map(NodeId).collect::<Vec<_>>();
        pairs(&ids(old), &ids(new), n).into_iter().map(|pair| (pair.from.0, pair.to.0)).collect()
    }

    #[test]
    fn one_replica_moves_with_the_owner_and_only_with_it() {
        assert_eq!(of(&[0], &[1, 0], 1), [(0, 1)]);
        assert_eq!(of(&[0, 1], &[0, 2], 1), []);
    }

    #[test]
    fn leavers_have_successors_and_a_node_in_both_sets_moves_nothing() {
        assert_eq!(of(&[0, 1, 2], &[3, 2, 0], 3), [(1, 3)]);
        assert_eq!(of(&[0, 1, 2], &[3, 4, 0], 3), [(1, 3), (2, 4)]);
        assert_eq!(of(&[0, 1, 2], &[2, 0, 1], 3), []);
    }

    #[test]
    fn a_growing_set_copies_from_the_owner_and_a_shrinking_one_hands_to_all_that_stay() {
        assert_eq!(of(&[0], &[0, 1, 2], 3), [(0, 1), (0, 2)]);
        assert_eq!(of(&[0, 1, 2], &[0, 1], 3), [(2, 0), (2, 1)]);
    }
}
