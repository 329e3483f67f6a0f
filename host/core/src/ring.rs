//! The ring: who holds which partition, as an explicit table (DESIGN.md D2).

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
    /// Log index of the last change of this partition (R2).
    pub version: u64,
    /// The change under way, if any.
    pub pending: Option<Transfer>,
}

/// The whole ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingTable {
    /// Number of partitions.
    pub size: RingSize,
    /// Log index of the last change of any partition.
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

    /// The owner of a partition: the first of its replicas.
    pub fn owner(&self, id: PartitionId) -> NodeId {
        self.partition(id).replicas[0]
    }
}
