//! The state of one partition on this node: ownership, seal, and the vnodes that run.

use std::collections::BTreeMap;

use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_storage::{FoundStage, Items};
use serde::{Deserialize, Serialize};

use super::mailbox::VnodeHandle;
use super::outgoing::Outgoing;

/// A partition on this node. Its lock is held for a few loads and a `try_send`, never across an await.
#[derive(Default)]
pub(super) struct Slot {
    /// Version of the partition that this node has applied.
    pub(super) version: u64,
    /// Log index of the last applied state, and the transfer that is pending in that state.
    pub(super) applied: (u64, Option<TransferId>),
    /// Version of the sets that keep the partition, of the state that this node has applied. It orders what replicas know.
    pub(super) sets_version: u64,
    /// True if this node owns the partition at that version.
    pub(super) held: bool,
    /// The transfer for which the partition is sealed: its vnodes answer no commands (R1).
    pub(super) sealed: Option<TransferId>,
    /// Round of the last seal, for a vnode that starts after it.
    pub(super) seal_round: u64,
    /// The handoff of the partition. Every vnode that starts learns of it.
    pub(super) outgoing: Option<(TransferId, Outgoing)>,
    /// The vnodes that serve.
    pub(super) vnodes: BTreeMap<ModuleUid, VnodeHandle>,
    /// The stores that this node keeps of modules with several replicas, apart from those of modules with one.
    pub(super) replicas: BTreeMap<ModuleUid, Replica>,
    /// What this node keeps for replicas at other nodes, apart from its own stores (R7).
    pub(super) hints: BTreeMap<ModuleUid, Hint>,
    /// The vnodes of an incoming transfer, apart from those that serve (R7).
    pub(super) stage: Option<TransferStage>,
    /// Vnodes that serve nothing and keep items that a recovered state did not include (R19).
    pub(super) aside: Vec<VnodeHandle>,
}

impl Slot {
    /// Return true if the log, as far as it is applied here, has ended this transfer. The id of a transfer is the index
    /// of the entry that created it.
    pub(super) fn is_over(&self, transfer: TransferId) -> bool {
        let (index, pending) = self.applied;
        transfer.0 <= index && pending != Some(transfer)
    }

    /// Return the vnodes that serve, of modules with one replica and with several.
    pub(super) fn running(&self) -> impl Iterator<Item = &VnodeHandle> {
        let hints = self.hints.values().filter_map(|hint| hint.vnode.as_ref());
        let replicas = self.replicas.values().filter_map(|replica| replica.vnode.as_ref());
        self.vnodes.values().chain(replicas).chain(hints)
    }

    /// Return true if the vnodes send their writes and pages to this transfer.
    pub(super) fn is_outgoing(&self, transfer: TransferId) -> bool {
        let any = mutants::on(Mutant::ReadForAnotherTransfer);
        self.outgoing.as_ref().is_some_and(|(of, _)| *of == transfer || any)
    }

    /// Remove the stage and return its vnodes.
    pub(super) fn take_stage(&mut self) -> BTreeMap<ModuleUid, VnodeHandle> {
        self.stage.take().map(|stage| stage.vnodes).unwrap_or_default()
    }
}

/// This node's store of a partition of a module with several replicas.
#[derive(Default)]
pub(super) struct Replica {
    /// True if the store has all that it should have (R5).
    pub(super) complete: bool,
    /// Tells this store from an earlier and a later one of the same partition and module.
    pub(super) generation: u64,
    /// True if acknowledged writes may have been lost with a former store.
    pub(super) lost: bool,
    /// The pending transfer that makes this node a member; `None` if it is one.
    pub(super) coming: Option<TransferId>,
    /// The vnode, started on demand.
    pub(super) vnode: Option<VnodeHandle>,
    /// Its items, for the next vnode if this one ends by itself.
    pub(super) items: Option<Items>,
}

/// A store of items that replicas at other nodes lack.
#[derive(Default)]
pub(super) struct Hint {
    /// The vnode, started on demand. It answers no commands.
    pub(super) vnode: Option<VnodeHandle>,
    /// Its items, for the next vnode if this one ends by itself.
    pub(super) items: Option<Items>,
    /// Number of writes that it was given.
    pub(super) writes: u64,
}

/// The vnodes that receive the items of a transfer and serve nothing yet.
pub(super) struct TransferStage {
    pub(super) transfer: TransferId,
    /// Counts the stages of one transfer.
    pub(super) generation: u64,
    /// True once all items have arrived and were merged.
    pub(super) complete: bool,
    /// True if the stage was found on disk, without the items of modules that keep theirs in memory.
    pub(super) lost_memory: bool,
    pub(super) vnodes: BTreeMap<ModuleUid, VnodeHandle>,
}

/// Identifies a stage, so that the task which fills a dropped stage does not continue with its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageId {
    /// The partition.
    pub partition: PartitionId,
    /// The transfer.
    pub transfer: TransferId,
    /// Counts the stages of the transfer at the receiver.
    pub generation: u64,
}

impl TransferStage {
    /// Create the stage that the former process completed. Its vnodes start on demand, once it is promoted.
    pub(super) fn found(found: FoundStage) -> Self {
        let FoundStage { transfer, whole, .. } = found;
        Self { transfer, generation: 0, complete: true, lost_memory: !whole, vnodes: BTreeMap::new() }
    }

    pub(super) fn is(&self, id: StageId) -> bool {
        let any = mutants::on(Mutant::FillTheNextStage);
        self.transfer == id.transfer && (self.generation == id.generation || any)
    }
}

/// A summary of a slot, for status reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// The partition.
    pub partition: PartitionId,
    /// True if this node is the owner.
    pub held: bool,
    /// True if the partition is sealed for a transfer.
    pub sealed: bool,
    /// Number of running vnodes.
    pub vnodes: usize,
    /// Number of stores of modules with several replicas, and of those among them that are being built (R5).
    #[serde(default)]
    pub replicas: usize,
    /// See `replicas`.
    #[serde(default)]
    pub building: usize,
    /// Number of vnodes that receive a transfer.
    pub staging: usize,
    /// Number of vnodes that serve nothing and keep items that a recovered state did not include.
    pub aside: usize,
    /// Number of traps of the running vnodes since they started.
    pub traps: u64,
    /// Number of vnodes in back-off.
    pub in_back_off: usize,
}
