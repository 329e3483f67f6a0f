//! The requests of a handoff to the vnodes of a partition: to forward writes, to read pages, to seal, and to receive
//! items in a stage.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::RequestError;
use annulus_core::state::StorageKind;
use tokio::sync::oneshot;

use super::Master;
use crate::control::{Control, Count};
use crate::mailbox::VnodeHandle;
use crate::outgoing::Outgoing;
use crate::slot::{Slot, StageId, TransferStage};
use annulus_storage::{Items, StorageError};

/// The outcome of a request for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The vnode will put the page into the stream of the handoff.
    Coming,
    /// The module has no items here.
    NoItems,
    /// The module has items on disk and cannot run here yet.
    NotReady,
    /// The vnodes of the partition already send to another transfer: this one is over.
    Replaced,
}

/// The reason why a stage does not have all items of its transfer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncompleteStage {
    /// The stage was dropped, or replaced by another one of the transfer.
    #[error("the stage is gone")]
    Gone,
    /// A guest of the stage trapped and lost the items that it had received.
    #[error("the vnode of module {0} trapped while it took in the transfer")]
    Trapped(ModuleUid),
    /// The items cannot be made durable.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Master {
    /// Forward the writes of the partition's vnodes, also of those that start later, to `outgoing`.
    ///
    /// Return false if this node does not own the partition, or if the log has ended the transfer. A driver that has
    /// not yet applied that end must not take the vnodes from the transfer that replaced its own.
    pub fn begin_outgoing(&self, partition: PartitionId, transfer: TransferId, outgoing: Outgoing) -> bool {
        let may = |slot: &Slot| slot.held && !slot.is_over(transfer);
        let Some(mut slot) = self.slot(partition).filter(|slot| may(slot)) else { return false };
        for vnode in slot.vnodes.values() {
            vnode.tell(Control::StartOutgoing(outgoing.clone()));
        }
        slot.outgoing = Some((transfer, outgoing));
        true
    }

    /// Have a vnode put a page of its items into the stream of a transfer.
    pub fn read_page(
        &self,
        partition: PartitionId,
        transfer: TransferId,
        module: ModuleUid,
        attempt: u64,
        after: Option<Vec<u8>>,
    ) -> Reading {
        // A vnode has a single stream. The driver of a replaced transfer may not know yet that its transfer is over:
        // its page would enter the stream of the next transfer, which would take it for a page of its own.
        let Some(mut slot) = self.slot(partition).filter(|slot| slot.is_outgoing(transfer)) else {
            return Reading::Replaced;
        };
        if self.start_stored(&mut slot, partition).contains(&module) {
            return Reading::NotReady;
        }
        match slot.vnodes.get(&module) {
            Some(vnode) if vnode.tell(Control::ReadPage { attempt, after }) => Reading::Coming,
            _ => Reading::NoItems,
        }
    }

    /// Count the items of each module in a partition; `None` for a guest that fails to count.
    pub async fn count(&self, partition: PartitionId) -> BTreeMap<ModuleUid, Option<u64>> {
        let mut counts = BTreeMap::new();
        for vnode in self.vnodes(partition) {
            let (answer, count) = oneshot::channel();
            vnode.tell(Control::Count(answer));
            let count = match count.await {
                Ok(Count::Stored(count) | Count::Said(count)) => Some(count),
                _ => None,
            };
            counts.insert(vnode.module, count);
        }
        counts
    }

    /// Count the items of a module in a stage. `None` if the guest keeps them.
    pub async fn staged_count(&self, stage: StageId, module: ModuleUid) -> Option<u64> {
        let vnode = self.slot(stage.partition).and_then(|slot| {
            slot.stage.as_ref().filter(|current| current.is(stage))?.vnodes.get(&module).cloned()
        });
        let Some(vnode) = vnode else { return Some(0) };
        let (answer, count) = oneshot::channel();
        vnode.tell(Control::Count(answer));
        match count.await {
            Ok(Count::Stored(count)) => Some(count),
            _ => None,
        }
    }

    /// Seal a partition for a transfer: its vnodes answer no more commands, and each confirms that in the stream of
    /// the handoff (R1) with the number `round`. Return the modules of these vnodes, or `None` if this node does not
    /// own the partition or its vnodes already send to another transfer.
    pub fn seal(&self, partition: PartitionId, transfer: TransferId, round: u64) -> Option<Vec<ModuleUid>> {
        let mut slot = self.slot(partition).filter(|slot| slot.held && slot.is_outgoing(transfer))?;
        (slot.sealed, slot.seal_round) = (Some(transfer), round);
        Some(
            slot.vnodes
                .values()
                .filter(|vnode| vnode.tell(Control::Seal(round)))
                .map(|vnode| vnode.module)
                .collect(),
        )
    }

    /// End the forwarding of writes to a transfer.
    pub fn end_outgoing(&self, partition: PartitionId, transfer: TransferId, finished: bool) {
        if let Some(mut slot) = self.slot(partition)
            && slot.outgoing.as_ref().is_some_and(|(of, _)| *of == transfer)
        {
            slot.outgoing = None;
            for vnode in slot.vnodes.values() {
                vnode.tell(Control::EndOutgoing { finished });
            }
        }
    }

    /// Lift the seal of a transfer that will not complete: its flip was never proposed, or was refused.
    pub fn unseal(&self, partition: PartitionId, transfer: TransferId) {
        if let Some(mut slot) = self.slot(partition)
            && slot.sealed == Some(transfer)
        {
            slot.sealed = None;
            for vnode in slot.vnodes.values() {
                vnode.tell(Control::Unseal);
            }
        }
    }

    /// Open a stage for the items of a transfer, apart from the vnodes that serve. The previous stage of the
    /// partition is dropped.
    pub fn stage(&self, stage: StageId) {
        let StageId { partition, transfer, generation } = stage;
        // The task of a replaced transfer must not drop the stage of the transfer that replaced it.
        let may = |slot: &Slot| !slot.is_over(transfer) || mutants::on(Mutant::StageWhatIsOver);
        if let Some(mut slot) = self.slot(partition).filter(|slot| may(slot)) {
            let mut old =
                slot.stage.as_mut().map(|stage| std::mem::take(&mut stage.vnodes)).unwrap_or_default();
            let vnodes =
                if mutants::on(Mutant::KeepStage) { std::mem::take(&mut old) } else { BTreeMap::new() };
            let (complete, lost_memory) = (false, false);
            if let Some(old) =
                slot.stage.replace(TransferStage { transfer, generation, complete, lost_memory, vnodes })
            {
                self.inner.config.stores.drop_stage(partition, old.transfer);
            }
            VnodeHandle::end_all(old.into_values(), &RequestError::stale_ring(slot.version), true);
        }
    }

    /// Return the vnode that receives the items of a module, started on demand. `None` if the stage was dropped or the
    /// module cannot run here.
    pub fn staged_vnode(&self, stage: StageId, module: ModuleUid) -> Option<VnodeHandle> {
        let mut slot = self.slot(stage.partition)?;
        let current = slot.stage.as_mut().filter(|current| current.is(stage))?;
        if let Some(handle) = current.vnodes.get(&module) {
            return Some(handle.clone());
        }
        let release = self.inner.config.modules.release(module)?;
        let items = match release.storage {
            StorageKind::Memory => Items::memory(),
            StorageKind::Durable => self.inner.config.stores.stage(module, stage.partition, stage.transfer),
        };
        let handle = self.start(module, stage.partition, release, items, true);
        current.vnodes.insert(module, handle.clone());
        Some(handle)
    }

    /// Mark a stage as complete: all items of the transfer were merged, and those of durable modules are on disk.
    ///
    /// # Errors
    /// If the stage must not be promoted, with the reason. The stage is unchanged.
    pub async fn staging_complete(&self, stage: StageId) -> Result<(), IncompleteStage> {
        let whole = self.check_stage(stage)?;
        // From here on, a crash of this node must find the stage again: the owner may propose the flip.
        self.inner.config.stores.complete_stage(stage.partition, stage.transfer, whole).await?;
        self.check_stage(stage)?;
        let mut slot = self.slot(stage.partition).ok_or(IncompleteStage::Gone)?;
        let current = slot.stage.as_mut().filter(|current| current.is(stage));
        current.ok_or(IncompleteStage::Gone)?.complete = true;
        Ok(())
    }

    /// Check that a stage may be completed. Return true if all of its items are on disk.
    fn check_stage(&self, stage: StageId) -> Result<bool, IncompleteStage> {
        let slot = self.slot(stage.partition).ok_or(IncompleteStage::Gone)?;
        let current = slot.stage.as_ref().filter(|current| current.is(stage));
        let current = current.ok_or(IncompleteStage::Gone)?;
        // A vnode that trapped, in a swap for instance, continued with an empty instance: its items are lost.
        let trapped = |vnode: &&VnodeHandle| {
            vnode.gauge.traps.load(Ordering::Relaxed) > 0 && !mutants::on(Mutant::PromoteWhatTrapped)
        };
        if let Some(vnode) = current.vnodes.values().find(trapped) {
            return Err(IncompleteStage::Trapped(vnode.module));
        }
        Ok(current.vnodes.keys().all(|module| self.is_durable(*module)))
    }

    /// Return true if this node found a complete stage of the transfer on its disk when it started, with the items of
    /// all modules.
    pub fn has_found_stage(&self, partition: PartitionId, transfer: TransferId) -> bool {
        self.slot(partition).is_some_and(|slot| {
            let found = |stage: &TransferStage| {
                stage.transfer == transfer && stage.generation == 0 && stage.complete && !stage.lost_memory
            };
            slot.stage.as_ref().is_some_and(found)
        })
    }

    /// Return true if the items of a module are on disk.
    pub(super) fn is_durable(&self, module: ModuleUid) -> bool {
        let release = self.inner.config.modules.release(module);
        release.is_some_and(|release| release.storage == StorageKind::Durable)
    }

    /// Drop the stage of a transfer.
    pub fn unstage(&self, partition: PartitionId, transfer: TransferId) {
        if let Some(mut slot) = self.slot(partition)
            && slot.stage.as_ref().is_some_and(|stage| stage.transfer == transfer)
            && !mutants::on(Mutant::KeepStage)
        {
            VnodeHandle::end_all(
                slot.take_stage().into_values(),
                &RequestError::stale_ring(slot.version),
                true,
            );
            self.inner.config.stores.drop_stage(partition, transfer);
        }
    }
}
