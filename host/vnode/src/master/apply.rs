//! The application of the committed log to the slots: it changes the ownership of partitions, and starts to serve or
//! ends the vnodes of the partitions that this node gets or loses.

use std::collections::BTreeMap;

use annulus_core::holding::{Change, Holding};
use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::ring::RingTable;
use annulus_core::state::Lineage;

use super::replica::Following;
use super::{Known, Master};
use crate::control::Control;
use crate::mailbox::VnodeHandle;
use crate::slot::{Slot, TransferStage};
use annulus_storage::LogPlace;

impl Master {
    /// Apply a committed ring. `index` is the log index of that state; calls are in log order. `modules` are the deployed
    /// modules, with the number of replicas of each.
    ///
    /// After a recovery, return the partitions whose items are set aside here, and may exist nowhere else.
    pub fn apply(
        &self,
        ring: &RingTable,
        modules: &BTreeMap<ModuleUid, usize>,
        index: u64,
        lineage: Lineage,
    ) -> Vec<PartitionId> {
        let me = self.inner.config.me;
        let stores = &self.inner.config.stores;
        let place = LogPlace { lineage, index };
        // A node that has lost power may first see a state from before what its stores have followed: they are synced,
        // its copy of the log is not always. Such a state changes no store.
        let is_behind = stores.found_at().is_some_and(|found| place < found);
        let before = {
            let known = Known { lineage, modules: modules.clone(), is_behind };
            self.inner.known.lock().replace(known)
        };
        let judged = before.as_ref().is_some_and(|before| !before.is_behind);
        let known = before.as_ref().map(|before| before.lineage);
        let known = known.max(stores.found_at().map(|found| found.lineage));
        let recovers = known.is_some_and(|known| known < lineage);
        if !is_behind {
            stores.follow(place);
        }
        // A recovered state may be older than a module's deploy: a module that it lacks was not undeployed.
        let undeployed = |uid: &ModuleUid| {
            let had = before.as_ref().is_some_and(|before| before.modules.contains_key(uid));
            had && !recovers && !modules.contains_key(uid)
        };
        // A module's uid is the index of the entry that created it. A vnode of a later module may already run if another
        // task has applied that entry: its absence from this older state is not an undeploy.
        let older = |uid: &ModuleUid| uid.0 <= index || mutants::on(Mutant::EndWhatIsNewer);
        let single: Vec<_> = modules.iter().filter(|(_, n)| **n == 1).map(|(uid, _)| *uid).collect();
        self.inner.first.get_or_init(|| index);
        let how = Following { index, recovers, is_behind };
        let mut aside = Vec::new();
        for (id, partition) in ring.size.partitions().zip(&ring.partitions) {
            let Some(mut slot) = self.slot(id) else { continue };
            let mut holding = Holding {
                version: slot.version,
                held: slot.held,
                sealed: slot.sealed,
                staged: slot.stage.as_ref().map(|stage| (stage.transfer, stage.complete)),
            };
            let changes = if recovers {
                holding.recover(partition, me, index)
            } else {
                holding.apply(partition, me, index)
            };
            (slot.version, slot.held, slot.sealed) = (holding.version, holding.held, holding.sealed);
            slot.sets_version = partition.sets_version().max(slot.version);
            slot.applied = (index, partition.pending.as_ref().map(|pending| pending.id));
            let flipped = LogPlace { lineage, index: partition.version };
            let is_done = stores.found_at().is_some_and(|found| flipped <= found);
            for change in changes {
                // Without modules there were no items to lose.
                if change != Change::TakeEmpty || !single.is_empty() {
                    self.carry_out(change, &mut slot, id, &single, is_done);
                }
            }
            self.apply_replicas(&mut slot, (id, partition), modules, how);
            if !judged && !is_behind && !slot.held {
                // The partition moved while this node was down.
                if recovers { stores.set_members_aside(id) } else { stores.drop_members(id) }
            }
            let gone = |uid: &&ModuleUid| older(uid) && !modules.contains_key(uid);
            self.end_hints(&mut slot, id, |module| gone(&module), recovers);
            let gone: Vec<ModuleUid> = slot.vnodes.keys().filter(gone).copied().collect();
            let gone: BTreeMap<_, _> = gone.iter().filter_map(|uid| slot.vnodes.remove_entry(uid)).collect();
            if recovers && !gone.is_empty() {
                self.set_vnodes_aside(gone, &mut slot, id);
            } else {
                VnodeHandle::end_all(gone.into_values(), &undeployed_error(), true);
            }
            let (gone, kept): (Vec<_>, Vec<_>) =
                std::mem::take(&mut slot.aside).into_iter().partition(|vnode| undeployed(&vnode.module));
            slot.aside = kept;
            VnodeHandle::end_all(gone, &undeployed_error(), true);
            // Report the vnodes that an earlier recovery set aside too: its recovered state is no longer current.
            if recovers && !slot.aside.is_empty() {
                aside.push(id);
            }
        }
        if !judged && !is_behind {
            self.drop_unkept(how);
        }
        for module in stores.modules() {
            if older(&module) && !modules.contains_key(&module) && !is_behind {
                if recovers { stores.set_module_aside(module) } else { stores.drop_module(module) }
            }
        }
        self.inner.applied.send_replace(index);
        aside
    }

    /// Carry out a step. With `is_done`, the stores on disk have followed the change of the partition already, before this
    /// process.
    fn carry_out(
        &self,
        change: Change,
        slot: &mut Slot,
        id: PartitionId,
        modules: &[ModuleUid],
        is_done: bool,
    ) {
        let elsewhere = RequestError::stale_ring(slot.version);
        let stores = &self.inner.config.stores;
        match change {
            Change::Promote => {
                let Some(stage) = slot.stage.take() else { return };
                stores.promote(id, stage.transfer);
                slot.vnodes = stage.vnodes;
                if stage.lost_memory {
                    // At the start of a node the releases are not loaded yet.
                    let on_disk = stores.members_of(id);
                    let in_memory =
                        |module: &ModuleUid| !on_disk.contains(module) && !self.is_durable(*module);
                    let kept: Vec<_> = modules.iter().copied().filter(in_memory).collect();
                    let reason = "this node ended after it had received the partition, with what its modules keep in memory";
                    self.note_loss(&kept, id, reason);
                }
            }
            Change::DropIncomplete => {
                let reason = "this node became the owner of the partition before all of its items arrived";
                self.note_loss(modules, id, reason);
                self.drop_stage(slot, id);
            }
            Change::TakeEmpty => {
                let reason = "this node became the owner of the partition without its items";
                // What the former process had taken is in the stores.
                let lost = |module: &ModuleUid| !is_done || !self.is_stored(*module);
                let lost: Vec<_> = modules.iter().copied().filter(lost).collect();
                self.note_loss(&lost, id, reason);
            }
            // The items of a cancelled transfer must never serve (R7).
            Change::DropStage if mutants::on(Mutant::KeepStage) => {}
            Change::DropStage => self.drop_stage(slot, id),
            Change::SetAside => {
                slot.outgoing = None;
                stores.set_members_aside(id);
                let vnodes = std::mem::take(&mut slot.vnodes);
                self.set_vnodes_aside(vnodes, slot, id);
            }
            Change::SetStageAside => {
                let Some(TransferStage { transfer, vnodes, .. }) = slot.stage.take() else { return };
                stores.set_stage_aside(id, transfer);
                self.set_vnodes_aside(vnodes, slot, id);
            }
            Change::GiveUp => {
                slot.outgoing = None;
                // What they have now may be from a later change.
                if !is_done {
                    stores.drop_members(id);
                }
                drop(VnodeHandle::end_all(std::mem::take(&mut slot.vnodes).into_values(), &elsewhere, true));
            }
            Change::Unseal => {
                for vnode in slot.vnodes.values() {
                    vnode.tell(Control::Unseal);
                }
            }
        }
    }

    /// Return true if the items of a module are on disk, also before its release is loaded.
    fn is_stored(&self, module: ModuleUid) -> bool {
        self.is_durable(module) || self.inner.config.stores.modules().contains(&module)
    }

    /// Drop the stage, whose vnodes have never served.
    fn drop_stage(&self, slot: &mut Slot, id: PartitionId) {
        if let Some(stage) = slot.stage.take() {
            self.inner.config.stores.drop_stage(id, stage.transfer);
            let elsewhere = RequestError::stale_ring(slot.version);
            drop(VnodeHandle::end_all(stage.vnodes.into_values(), &elsewhere, true));
        }
    }

    pub(super) fn set_vnodes_aside(
        &self,
        vnodes: BTreeMap<ModuleUid, VnodeHandle>,
        slot: &mut Slot,
        id: PartitionId,
    ) {
        if vnodes.is_empty() {
            return;
        }
        let modules: Vec<ModuleUid> = vnodes.keys().copied().collect();
        let reason = "the recovered state gives the partition to another node, or does not know the module; the \
                      items are kept aside here while this node runs";
        self.note_loss(&modules, id, reason);
        for vnode in vnodes.values() {
            vnode.tell(Control::EndOutgoing { finished: false });
            vnode.tell(Control::SetAside(RequestError::stale_ring(slot.version)));
        }
        slot.aside.extend(vnodes.into_values());
    }

    /// Record a possible loss for each of these modules, because it is unknown which of them had items.
    fn note_loss(&self, modules: &[ModuleUid], id: PartitionId, reason: &str) {
        for module in modules {
            let release = self.inner.config.modules.release(*module);
            let name = release.map_or_else(|| module.to_string(), |release| release.name.to_string());
            self.inner.incidents.note("possible-loss", &name, Some(u32::from(id.0)), reason);
        }
    }
}

pub(super) fn undeployed_error() -> RequestError {
    RequestError::not_applied(ErrorCode::UnknownModule, "the module was undeployed")
}
