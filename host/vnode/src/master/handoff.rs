//! What a handoff asks of a partition's vnodes: to tell it their writes and pages, to fall silent, and to take
//! in what comes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::RequestError;
use tokio::sync::oneshot;

use super::super::mailbox::{Control, Count, Outgoing, VnodeHandle};
use super::super::slot::{StageId, Staging};
use super::{Master, end_all};

/// What becomes of a page that a handoff wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The vnode puts it into the handoff's stream.
    Coming,
    /// No vnode of the module runs, so it has no items.
    NoItems,
    /// The partition's vnodes tell another transfer by now: this one is over.
    Replaced,
}

/// Why a stage is not all that its transfer brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncompleteStage {
    /// It was dropped, or another one of the transfer was begun.
    #[error("the stage is gone")]
    Gone,
    /// A guest of it trapped and lost what it had taken in.
    #[error("the vnode of module {0} trapped while it took in the transfer")]
    Trapped(ModuleUid),
}

impl Master {
    /// From now on what the partition's vnodes write is told to `outgoing` too, whenever they
    /// start; nothing of it if the log has ended the transfer, which its driver hears in a moment. False if this node
    /// does not hold the partition.
    pub fn begin_outgoing(&self, partition: PartitionId, transfer: TransferId, outgoing: Outgoing) -> bool {
        let Some(mut slot) = self.slot(partition).filter(|slot| slot.held) else { return false };
        if !slot.may_tell(transfer) {
            return true;
        }
        for vnode in slot.vnodes.values() {
            vnode.tell(Control::StartOutgoing(outgoing.clone()));
        }
        slot.outgoing = Some((transfer, outgoing));
        true
    }

    /// Has a vnode put a page of its items into the stream of its handoff `transfer`.
    pub fn read_page(
        &self,
        partition: PartitionId,
        transfer: TransferId,
        module: ModuleUid,
        attempt: u64,
        after: Option<Vec<u8>>,
    ) -> Reading {
        // Vnodes have one stream. The driver of a transfer that was replaced may not have heard so
        // yet: its page would come into the stream of the next transfer, which would take it for its own.
        let Some(slot) = self.slot(partition).filter(|slot| slot.tells(transfer)) else {
            return Reading::Replaced;
        };
        match slot.vnodes.get(&module) {
            Some(vnode) if vnode.tell(Control::ReadPage { attempt, after }) => Reading::Coming,
            _ => Reading::NoItems,
        }
    }

    /// How many items there are of each module that runs in a partition that serves; none where its
    /// guest cannot tell.
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

    /// How many items of a module a transfer has staged, if the host keeps them: none where nothing
    /// of it came.
    pub async fn staged_count(&self, stage: StageId, module: ModuleUid) -> Option<u64> {
        let vnode = self.slot(stage.partition).and_then(|slot| {
            let staging = slot.staging.as_ref().filter(|staging| staging.is(stage))?;
            staging.vnodes.get(&module).cloned()
        });
        let Some(vnode) = vnode else { return Some(0) };
        let (answer, count) = oneshot::channel();
        vnode.tell(Control::Count(answer));
        match count.await {
            Ok(Count::Stored(count)) => Some(count),
            _ => None,
        }
    }

    /// Seals a partition for a transfer: its vnodes answer nothing any more, and each says so
    /// in its handoff's stream (R1), with the number `round`. Answers which; `None` if this node does not
    /// hold it, or if its vnodes tell another transfer by now.
    pub fn seal(&self, partition: PartitionId, transfer: TransferId, round: u64) -> Option<Vec<ModuleUid>> {
        let mut slot = self.slot(partition).filter(|slot| slot.held && slot.tells(transfer))?;
        (slot.sealed, slot.seal_round) = (Some(transfer), round);
        Some(
            slot.vnodes
                .values()
                .filter(|vnode| vnode.tell(Control::Seal(round)))
                .map(|vnode| vnode.module)
                .collect(),
        )
    }

    /// The handoff is over: nothing is told to it any more.
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

    /// Lifts a seal whose transfer will not happen: only for one whose flip was never
    /// proposed, or is known to have been refused.
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

    /// Makes room for a transfer's items, apart from what serves; what was staged there
    /// before is dropped.
    pub fn stage(&self, stage: StageId) {
        let StageId { partition, transfer, generation } = stage;
        // The task of a transfer that was replaced must not take the stage from the one that replaced it.
        if let Some(mut slot) = self.slot(partition).filter(|slot| !slot.is_over(transfer)) {
            let mut old = slot.staging.take().map(|staging| staging.vnodes).unwrap_or_default();
            let vnodes =
                if mutants::on(Mutant::KeepStage) { std::mem::take(&mut old) } else { BTreeMap::new() };
            slot.staging = Some(Staging { transfer, generation, complete: false, vnodes });
            end_all(old, &RequestError::stale_ring(slot.version), true);
        }
    }

    /// The vnode that takes in a module's items of a transfer; `None` if the transfer is not
    /// staged here or the module cannot run here.
    pub fn staged_vnode(&self, stage: StageId, module: ModuleUid) -> Option<VnodeHandle> {
        let mut slot = self.slot(stage.partition)?;
        let staging = slot.staging.as_mut().filter(|staging| staging.is(stage))?;
        if let Some(handle) = staging.vnodes.get(&module) {
            return Some(handle.clone());
        }
        let behaviour = self.inner.config.modules.behaviour(module)?;
        let handle = self.start(module, stage.partition, behaviour);
        staging.vnodes.insert(module, handle.clone());
        Some(handle)
    }

    /// All items of a transfer have been merged.
    ///
    /// # Errors
    /// Says why the stage must not be promoted. It stays as it is.
    pub fn staging_complete(&self, stage: StageId) -> Result<(), IncompleteStage> {
        let mut slot = self.slot(stage.partition).ok_or(IncompleteStage::Gone)?;
        let staging = slot.staging.as_mut().filter(|staging| staging.is(stage));
        let staging = staging.ok_or(IncompleteStage::Gone)?;
        // A vnode that trapped, in a swap say, went on with an empty instance: what it had taken in is gone.
        let trapped = |vnode: &&VnodeHandle| {
            vnode.gauge.traps.load(Ordering::Relaxed) > 0 && !mutants::on(Mutant::PromoteWhatTrapped)
        };
        if let Some(vnode) = staging.vnodes.values().find(trapped) {
            return Err(IncompleteStage::Trapped(vnode.module));
        }
        staging.complete = true;
        Ok(())
    }

    /// Drops what came of a transfer.
    pub fn unstage(&self, partition: PartitionId, transfer: TransferId) {
        if let Some(mut slot) = self.slot(partition)
            && slot.staging.as_ref().is_some_and(|staging| staging.transfer == transfer)
            && !mutants::on(Mutant::KeepStage)
            && let Some(staging) = slot.staging.take()
        {
            end_all(staging.vnodes, &RequestError::stale_ring(slot.version), true);
        }
    }
}
