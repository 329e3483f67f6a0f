//! Invariants of the state, whichever entries have made it.

use super::ClusterState;

impl ClusterState {
    /// Assert the invariants in builds with debug assertions, the simulation's among them. This is called after each
    /// entry and by a recovery.
    pub(super) fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let ring = &self.ring;
        assert_eq!(ring.partitions.len(), usize::from(ring.size.get()), "a ring has all of its partitions");
        for (id, partition) in ring.iter() {
            let pending = partition.pending.as_ref().map(|transfer| &transfer.target);
            for set in [&partition.replicas].into_iter().chain(pending) {
                assert!(!set.is_empty(), "partition {} has an owner", id.0);
                let distinct = set.iter().enumerate().all(|(at, node)| !set[..at].contains(node));
                assert!(distinct, "the replicas {set:?} of partition {} are distinct", id.0);
            }
        }
        assert!(self.members.iter().all(|(id, member)| *id == member.id), "members are listed by their ids");
    }
}
