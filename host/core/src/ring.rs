//! The ring: who holds which partition, as an explicit table (DESIGN.md D2).

pub mod pairs;

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, TransferId};
use crate::keyspace::{PartitionId, RingSize};

/// A change of a partition's replica set that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The index of the log entry that made it.
    pub id: TransferId,
    /// The ordered replica set to come.
    pub target: Vec<NodeId>,
}

/// One partition of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Ordered, distinct; the first is the owner. Never empty.
    pub replicas: Vec<NodeId>,
    /// Log index of the last change of `replicas` (R2). A transfer that begins or is given up
    /// leaves it alone: it changes nobody's duties, and requests under way stay good.
    pub version: u64,
    /// The transfer that made `replicas`, 0 for the founding: so that who was away when it
    /// flipped can tell that from a cancel. A removal by force leaves it alone.
    pub made_by: TransferId,
    /// The change under way, if any.
    pub pending: Option<Transfer>,
}

/// What became of a transfer, by the committed log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Under way.
    Pending,
    /// Its target is the replica set, or was until a later transfer.
    Flipped,
    /// Given up: nothing of it may be kept.
    Cancelled,
}

impl Partition {
    /// Where it is going: the set to come, or the present one.
    pub fn target(&self) -> &[NodeId] {
        self.pending.as_ref().map_or(&self.replicas, |transfer| &transfer.target)
    }

    /// What became of a transfer.
    ///
    /// `has_given`: asked by the giver, which by the present set holds what it was to give no
    /// more. That tells a flip from a cancel even after later transfers, because only a holder
    /// gives a partition away (R1): nobody else could have made it so. A taker asks with
    /// `false`: it looks here before it gives away in turn, so what it still has staged of an
    /// older transfer was cancelled.
    pub fn fate_of(&self, transfer: TransferId, has_given: bool) -> Fate {
        let pending = self.pending.as_ref().is_some_and(|pending| pending.id == transfer);
        if pending {
            Fate::Pending
        } else if self.made_by == transfer || (self.made_by > transfer && has_given) {
            Fate::Flipped
        } else {
            Fate::Cancelled
        }
    }

    /// Held by these since the founding: for a new ring, and for tests.
    pub fn held_by(replicas: Vec<NodeId>, version: u64) -> Self {
        Self { replicas, version, made_by: TransferId(0), pending: None }
    }
}

/// The whole ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingTable {
    /// Number of partitions.
    pub size: RingSize,
    /// Log index of the last change of any partition, of what is pending too: what a table is
    /// computed from.
    pub epoch: u64,
    /// By partition id.
    pub partitions: Vec<Partition>,
}

impl RingTable {
    /// One partition of this ring.
    ///
    /// # Panics
    /// If `id` is of a larger ring: ids are made by [`RingSize`] and checked on the wire.
    pub fn partition(&self, id: PartitionId) -> &Partition {
        &self.partitions[usize::from(id.0)]
    }

    /// The same for an id from outside, which may be none of this ring's.
    pub fn get(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(usize::from(id.0))
    }

    /// Every partition with its id, in order.
    pub fn iter(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        self.size.partitions().zip(&self.partitions)
    }

    /// The change of a partition that is under way, if any.
    pub fn pending_of(&self, id: PartitionId) -> Option<&Transfer> {
        self.get(id).and_then(|partition| partition.pending.as_ref())
    }

    /// Every change under way.
    pub fn transfers(&self) -> impl Iterator<Item = (PartitionId, &Transfer)> {
        self.iter().filter_map(|(id, partition)| Some((id, partition.pending.as_ref()?)))
    }

    /// Is the node in any replica set, or in one to come?
    pub fn holds(&self, node: NodeId) -> bool {
        self.partitions.iter().any(|partition| {
            partition.replicas.contains(&node)
                || partition.pending.as_ref().is_some_and(|transfer| transfer.target.contains(&node))
        })
    }
}
