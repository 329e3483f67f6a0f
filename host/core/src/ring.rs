//! The ring: the replica set of every partition, as an explicit table (DESIGN.md D2).

pub mod pairs;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{ModuleUid, NodeId, TransferId};
use crate::keyspace::{PartitionId, RingSize};

/// A pending change of a partition's replica set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The index of the log entry that started it.
    pub id: TransferId,
    /// The ordered replica set after the change.
    pub target: Vec<NodeId>,
    /// The successors that have the items of a module with several replicas. State level 6. From level 7 on also the replicas
    /// that stay in a smaller set and have merged what the others have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub arrived: BTreeSet<(ModuleUid, NodeId)>,
}

impl Transfer {
    /// Create a transfer of which no node has reported.
    pub fn new(id: TransferId, target: Vec<NodeId>) -> Self {
        Self { id, target, arrived: BTreeSet::new() }
    }
}

/// One partition of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Ordered, distinct; the first is the owner. Never empty.
    pub replicas: Vec<NodeId>,
    /// The log index of the last change of `replicas` (R2). The start or cancel of a transfer does not change it: the
    /// roles stay the same, and requests in progress stay valid.
    pub version: u64,
    /// The transfer that made `replicas`; 0 for the founding. A node that was not running when the transfer flipped
    /// distinguishes a flip from a cancel by it. A removal by force does not change it.
    pub made_by: TransferId,
    /// The pending change, if any.
    pub pending: Option<Transfer>,
    /// The log index at which a pending change was last dropped with no change of `replicas`; 0 before the first. With it,
    /// nodes that follow different entries can tell which of them knows more ([`Partition::sets_version`]). State level
    /// 7.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(index: &u64) -> bool {
    *index == 0
}

/// The fate of a transfer, by the committed log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Not decided yet.
    Pending,
    /// Committed: its target is the replica set, or was until a later transfer.
    Flipped,
    /// Cancelled: none of its staged items may be kept.
    Cancelled,
}

impl Partition {
    /// Return the replica set after the pending change, or the present one.
    pub fn target(&self) -> &[NodeId] {
        self.pending.as_ref().map_or(&self.replicas, |transfer| &transfer.target)
    }

    /// Return the log index of the last change of the sets that keep the partition: of its replicas, or of the pending change,
    /// which began or was dropped. A node with a higher one knows later sets.
    pub fn sets_version(&self) -> u64 {
        let began = self.pending.as_ref().map_or(0, |transfer| transfer.id.0);
        self.version.max(self.dropped).max(began)
    }

    /// Return the fate of a transfer.
    ///
    /// `has_given` is true if the caller is the transfer's sender and no longer owns the partition. This
    /// distinguishes a flip from a cancel even after later transfers, because only the owner hands a partition over
    /// (R1). The successor passes `false`: it asks before it hands the partition over itself, so an older transfer of
    /// which it still has a stage was cancelled.
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

    /// Create a partition with these replicas and no pending change, for a new ring and for tests.
    pub fn held_by(replicas: Vec<NodeId>, version: u64) -> Self {
        Self { replicas, version, made_by: TransferId(0), pending: None, dropped: 0 }
    }
}

/// The whole ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingTable {
    /// The number of partitions.
    pub size: RingSize,
    /// The log index of the last change of any partition, pending changes included. A table is computed from one epoch.
    pub epoch: u64,
    /// The partitions by id.
    pub partitions: Vec<Partition>,
}

impl RingTable {
    /// Return one partition.
    ///
    /// # Panics
    /// If `id` belongs to a larger ring. [`RingSize`] creates only valid ids, and ids from the wire are checked.
    pub fn partition(&self, id: PartitionId) -> &Partition {
        &self.partitions[usize::from(id.0)]
    }

    /// Return one partition; `None` if the id, which may come from outside, belongs to a larger ring.
    pub fn get(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(usize::from(id.0))
    }

    /// Iterate over all partitions with their ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        self.size.partitions().zip(&self.partitions)
    }

    /// Return the pending change of a partition, if any.
    pub fn pending_of(&self, id: PartitionId) -> Option<&Transfer> {
        self.get(id).and_then(|partition| partition.pending.as_ref())
    }

    /// Iterate over all pending changes.
    pub fn transfers(&self) -> impl Iterator<Item = (PartitionId, &Transfer)> {
        self.iter().filter_map(|(id, partition)| Some((id, partition.pending.as_ref()?)))
    }

    /// Return true if the node is in any replica set, or will be by a pending change.
    pub fn holds(&self, node: NodeId) -> bool {
        self.partitions.iter().any(|partition| {
            partition.replicas.contains(&node)
                || partition.pending.as_ref().is_some_and(|transfer| transfer.target.contains(&node))
        })
    }
}
