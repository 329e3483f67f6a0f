//! The duties of a node by a committed ring: partitions to send, changes to flip at once, streams to accept, seals to
//! remove.

use crate::ids::{NodeId, TransferId};
use crate::keyspace::PartitionId;
use crate::ring::{Partition, RingTable};
use crate::role::{REPLICAS, Role};

/// A partition that a node is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The partition.
    pub partition: PartitionId,
    /// The pending transfer.
    pub transfer: TransferId,
    /// The partition's version.
    pub version: u64,
    /// The successor.
    pub successor: NodeId,
}

/// Return every partition that `me` owns and hands over to a successor. `is_ready` returns true if nothing else of the
/// pending transfer is waited for: the stream comes last, because the partition is sealed at its end.
pub fn to_send(
    ring: &RingTable,
    me: NodeId,
    is_ready: impl Fn(&Partition) -> bool,
) -> impl Iterator<Item = Sending> {
    ring.iter().filter_map(move |(partition, now)| {
        let pending = now.pending.as_ref().filter(|_| is_ready(now))?;
        let successor = now.successors(REPLICAS).next()?;
        let mine = now.role_of(me, REPLICAS) == Role::Owner;
        mine.then_some(Sending { partition, transfer: pending.id, version: now.version, successor })
    })
}

/// Return the pending changes of partitions that `me` owns and keeps. No item of a module with one replica moves, so
/// the owner, the only node that may flip them, does so at once (R4), or once `is_ready` returns true.
pub fn to_flip(
    ring: &RingTable,
    me: NodeId,
    is_ready: impl Fn(&Partition) -> bool,
) -> Vec<(PartitionId, TransferId)> {
    let mine = ring.iter().filter(|(_, partition)| partition.role_of(me, REPLICAS) == Role::Owner);
    let unmoved = mine.filter_map(|(id, partition)| {
        let pending = partition.pending.as_ref().filter(|_| is_ready(partition))?;
        partition.successors(REPLICAS).next().is_none().then_some((id, pending.id))
    });
    unmoved.collect()
}

/// Return true if this transfer is pending and makes `me` the owner of the partition.
pub fn takes(ring: &RingTable, me: NodeId, partition: PartitionId, transfer: TransferId) -> bool {
    let pending = ring.pending_of(partition).filter(|pending| pending.id == transfer);
    pending.is_some() && ring.role_of(me, partition, REPLICAS) == Role::Successor
}

/// Return true if a transfer has flipped or was cancelled, so that its seal has no meaning.
pub fn is_over(ring: &RingTable, partition: PartitionId, transfer: TransferId) -> bool {
    ring.pending_of(partition).is_none_or(|pending| pending.id != transfer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::keyspace::RingSize;
    use crate::ring::Transfer;

    #[test]
    fn the_owner_sends_or_flips_and_only_the_first_of_the_target_takes() {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let mut partitions = vec![Partition::held_by(set(&[1, 2]), 3); 8];
        let pending = |id, target: &[u64]| Some(Transfer::new(TransferId(id), set(target)));
        partitions[2].pending = pending(9, &[2, 1]);
        partitions[3].pending = pending(9, &[1, 3]);
        let ring = RingTable { size: RingSize::try_from(8).unwrap(), epoch: 9, partitions };
        let moved =
            Sending { partition: PartitionId(2), transfer: TransferId(9), version: 3, successor: NodeId(2) };
        let ready = |_: &Partition| true;
        assert_eq!(to_send(&ring, NodeId(1), ready).collect::<Vec<_>>(), [moved]);
        assert_eq!(to_send(&ring, NodeId(2), ready).count(), 0);
        assert_eq!(to_flip(&ring, NodeId(1), ready), [(PartitionId(3), TransferId(9))]);
        assert_eq!(to_flip(&ring, NodeId(3), ready), []);
        // Other modules have not arrived yet.
        assert_eq!(to_send(&ring, NodeId(1), |_| false).count(), 0);
        assert_eq!(to_flip(&ring, NodeId(1), |_| false), []);
        assert!(takes(&ring, NodeId(2), PartitionId(2), TransferId(9)));
        assert!(!takes(&ring, NodeId(2), PartitionId(2), TransferId(8)));
        assert!(!takes(&ring, NodeId(3), PartitionId(3), TransferId(9)));
        assert!(!is_over(&ring, PartitionId(2), TransferId(9)));
        assert!(is_over(&ring, PartitionId(2), TransferId(8)));
        assert!(is_over(&ring, PartitionId(4), TransferId(9)));
    }
}
