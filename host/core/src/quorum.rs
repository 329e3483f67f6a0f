//! The quorums of a module with several replicas: when a write is acknowledged, a read is answered, and a store has become
//! complete (R3 to R6, R9, R10; PROTOCOL.md, section 7).
//!
//! The three machines take events and return steps; they have no clock and send nothing themselves. While a transfer of
//! the partition is pending, a write needs `w` acknowledgements among the members and `w` among the nodes that will be the
//! members, and so does a read with `r`. Every answer carries the version of the partition at the node that gives it, so a node that does not know of a
//! change learns of it from the others before it counts them. With that:
//!
//! - A successor that has merged what `n - w + 1` complete members have at the version of its transfer has every write
//!   that was acknowledged before, and is sent every later one. It needs no stream from one giver, and no seal of one.
//! - After the flip, a read of `r` new members meets every acknowledged write, if `r + w > n`. If the set gets smaller, the
//!   members that stay merge what the others have first.
//! - A node that knows of the transfer and not of its flip reads a quorum of the new members, too: one of those with the
//!   newest write knows of the flip and says so. And every quorum of reads meets a node that knows of the transfer, because
//!   a successor is complete only with `n - r + 1` sources that know of it. So nobody has to be silent before the flip.

mod build;
mod read;
mod write;

#[cfg(test)]
mod model;

pub use build::{Build, BuildEvent, BuildStep};
pub use read::{Read, ReadEvent, ReadStep};
pub use write::{NotEnough, Write, WriteEvent, WriteStep};

use crate::ids::NodeId;
use crate::ring::Partition;

/// What a module asks of its replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorums {
    /// Number of replicas.
    pub n: usize,
    /// Number of nodes that agree on a read.
    pub r: usize,
    /// Number of nodes that acknowledge a write.
    pub w: usize,
    /// True if fallbacks may acknowledge a write, as long as one member does.
    pub sloppy: bool,
}

impl From<(usize, usize, usize)> for Quorums {
    fn from((n, r, w): (usize, usize, usize)) -> Self {
        Self { n, r, w, sloppy: false }
    }
}

/// The nodes that keep a partition of a module with `n` replicas, at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The place in the log of the last change of these sets ([`Partition::sets_version`]).
    pub version: u64,
    /// The members, in their order.
    pub members: Vec<NodeId>,
    /// The members after the pending transfer, if it changes them.
    pub target: Option<Vec<NodeId>>,
    /// The id of the transfer that made the members. Each of them has had its store at least since then.
    pub made_by: u64,
    /// The id of the pending transfer, 0 without one. The nodes that it adds have had their stores since then.
    pub pending: u64,
}

impl Group {
    /// Return the group of a partition for a module with `n` replicas.
    pub fn of(partition: &Partition, n: usize) -> Self {
        let members: Vec<NodeId> = partition.replicas.iter().copied().take(n).collect();
        let pending = partition.pending.as_ref();
        let target = pending.map(|transfer| transfer.target.iter().copied().take(n).collect::<Vec<_>>());
        let began = pending.map_or(0, |transfer| transfer.id.0);
        let version = partition.sets_version();
        let target = target.filter(|target| !same_nodes(target, &partition.replicas, n));
        Self { version, members, target, made_by: partition.made_by.0, pending: began }
    }

    /// Return every node that a write goes to: the members, then those that the pending transfer adds.
    pub fn receivers(&self) -> impl Iterator<Item = NodeId> {
        let added = self.target.iter().flatten().copied().filter(|node| !self.members.contains(node));
        self.members.iter().copied().chain(added)
    }

    /// Return true if the node is a member, or will be one.
    pub fn receives(&self, node: NodeId) -> bool {
        self.receivers().any(|receiver| receiver == node)
    }

    /// Return true if the node is a member and will not be one after the pending transfer.
    pub fn leaves(&self, node: NodeId) -> bool {
        self.members.contains(&node) && self.target.as_ref().is_some_and(|target| !target.contains(&node))
    }

    /// Return true if the node is a member that stays in a set that gets smaller. Fewer members have each write then, and no
    /// new one makes up for that. So each of those that stay merges what the others have before the change is complete
    /// ([`Build::level`]).
    pub fn levels(&self, node: NodeId) -> bool {
        let stays = |target: &Vec<NodeId>| target.len() < self.members.len() && target.contains(&node);
        self.members.contains(&node) && self.target.as_ref().is_some_and(stays)
    }

    /// Return the version since which a node has had the store that it has now, as far as the group shows. A node may have
    /// been a member before, left, and come back without its items.
    fn since(&self, node: NodeId) -> u64 {
        if self.members.contains(&node) { self.made_by } else { self.pending }
    }

    /// Return true if a quorum of each set is among the nodes that have something.
    pub fn have_quorums(&self, quorum: usize, has: impl Fn(NodeId) -> bool) -> bool {
        self.sets().all(|set| set.iter().filter(|node| has(**node)).count() >= quorum_of(quorum, set))
    }

    /// Return the sets of nodes of which a write needs a quorum each.
    fn sets(&self) -> impl Iterator<Item = &[NodeId]> {
        std::iter::once(&self.members[..]).chain(self.target.as_deref())
    }
}

/// Return true if the first `n` nodes of two sets are the same, in any order.
fn same_nodes(target: &[NodeId], replicas: &[NodeId], n: usize) -> bool {
    let replicas = &replicas[..n.min(replicas.len())];
    target.len() == replicas.len() && target.iter().all(|node| replicas.contains(node))
}

/// Return the number of members among which a request with this quorum needs answers: a set may be smaller than a module's
/// `n` (R4: `n`, `r` and `w` count from the committed set, never from liveness).
fn quorum_of(quorum: usize, set: &[NodeId]) -> usize {
    quorum.min(set.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TransferId;
    use crate::ring::Transfer;

    fn ids(nodes: &[u64]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_group_is_the_first_nodes_of_the_set_and_of_the_pending_one() {
        let mut partition = Partition::held_by(ids(&[1, 2, 3]), 5);
        let group = Group { version: 5, members: ids(&[1, 2]), target: None, made_by: 0, pending: 0 };
        assert_eq!(Group::of(&partition, 2), group);
        partition.pending = Some(Transfer::new(TransferId(9), ids(&[4, 1, 2])));
        let group = Group::of(&partition, 3);
        assert_eq!((group.version, group.receivers().collect::<Vec<_>>()), (9, ids(&[1, 2, 3, 4])));
        assert_eq!((group.since(NodeId(1)), group.since(NodeId(4))), (0, 9));
        assert!(group.have_quorums(2, |node| node != NodeId(2)) && !group.have_quorums(2, |node| node.0 < 2));
        assert!(group.leaves(NodeId(3)) && !group.leaves(NodeId(1)) && group.receives(NodeId(4)));
        // Another order of the same nodes changes the coordinator and no store.
        partition.pending = Some(Transfer::new(TransferId(9), ids(&[2, 1, 4])));
        assert_eq!(Group::of(&partition, 2).target, None);
    }
}
