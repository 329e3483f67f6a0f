//! Hints: what this node keeps for replicas at other nodes that could not be reached (R6, R7).
//!
//! A hint belongs to a partition, and not to the node that missed a write. It takes writes and answers nothing, also if this
//! node becomes a member later: its own replica is another store.

use std::collections::BTreeMap;

use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use annulus_core::state::StorageKind;
use annulus_storage::Items;

use super::replica::{NoReplica, ReplicaId};
use super::{Master, apply};
use crate::control::Control;
use crate::mailbox::VnodeHandle;
use crate::slot::{Hint, Slot};

impl Master {
    /// Give a write to a hint, which is made on demand. Return true if it is the first write of this hint. `version` is that
    /// of the sender; `message` makes the write for the vnode, from what is given and the version of the group here.
    ///
    /// # Errors
    /// As [`Master::replica`], with what was given. [`NoReplica::Elsewhere`]: this node is one of the replicas by the returned
    /// version, and a write goes to its replica.
    pub fn hint<T>(
        &self,
        id: ReplicaId,
        version: u64,
        given: T,
        message: impl FnOnce(T, u64) -> Control,
    ) -> Result<bool, (NoReplica, T)> {
        let Some(mut slot) = self.slot(id.partition) else { return Err((NoReplica::NotReady, given)) };
        if version > slot.sets_version {
            return Err((NoReplica::CatchUp, given));
        }
        if self.replicas_of(id.module).is_none() {
            return Err((NoReplica::NotReady, given));
        }
        let version = slot.sets_version;
        if slot.replicas.contains_key(&id.module) {
            return Err((NoReplica::Elsewhere(version), given));
        }
        let Some(vnode) = self.hint_vnode(&mut slot, id) else { return Err((NoReplica::NotReady, given)) };
        // The number changes with the mailbox: whoever reads the hint afterwards sees the writes that it counts.
        vnode.tell(message(given, version));
        let hint = slot.hints.entry(id.module).or_default();
        hint.writes += 1;
        Ok(hint.writes == 1)
    }

    /// Return the hints of this node, those on disk included.
    pub fn hints(&self) -> Vec<ReplicaId> {
        let started = |partition, slot: &Slot| {
            slot.hints.keys().map(|module| ReplicaId { module: *module, partition }).collect()
        };
        let mut hints = self.with_slots(started);
        let stored = self.inner.config.stores.hints().into_iter();
        hints.extend(stored.map(|(module, partition)| ReplicaId { module, partition }));
        hints.sort_unstable();
        hints.dedup();
        hints
    }

    /// Return the vnode of a hint, to read it, and the number of writes that it was given; `None` if there is no such hint, or its
    /// module cannot run here yet.
    pub fn kept_hint(&self, id: ReplicaId) -> Option<(VnodeHandle, u64)> {
        let mut slot = self.slot(id.partition)?;
        let is_stored = || self.inner.config.stores.hints().contains(&(id.module, id.partition));
        if !slot.hints.contains_key(&id.module) && !is_stored() {
            return None;
        }
        let vnode = self.hint_vnode(&mut slot, id)?;
        Some((vnode, slot.hints.get(&id.module)?.writes))
    }

    /// Drop a hint: enough replicas have what it had when it had been given this number of writes. Return false if it has been
    /// given more since then; it stays.
    pub fn drop_hint(&self, id: ReplicaId, writes: u64) -> bool {
        let Some(mut slot) = self.slot(id.partition) else { return true };
        if slot.hints.get(&id.module).is_some_and(|hint| hint.writes != writes) {
            return false;
        }
        let vnode = slot.hints.remove(&id.module).and_then(|hint| hint.vnode);
        drop(VnodeHandle::end_all(vnode, &apply::undeployed_error(), true));
        self.inner.config.stores.drop_hint(id.module, id.partition);
        true
    }

    /// End the hints of modules that the applied state does not have. Their stores are dropped or set aside with the module's
    /// others. With `recovers`, the module was not undeployed, and what is in memory is kept aside (R19).
    pub(super) fn end_hints(
        &self,
        slot: &mut Slot,
        id: PartitionId,
        is_gone: impl Fn(&ModuleUid) -> bool,
        recovers: bool,
    ) {
        let gone: Vec<ModuleUid> = slot.hints.keys().filter(|module| is_gone(module)).copied().collect();
        let ended: BTreeMap<ModuleUid, VnodeHandle> =
            gone.iter().filter_map(|module| Some((*module, slot.hints.remove(module)?.vnode?))).collect();
        if recovers && !ended.is_empty() {
            self.set_vnodes_aside(ended, slot, id);
        } else {
            drop(VnodeHandle::end_all(ended.into_values(), &apply::undeployed_error(), true));
        }
    }

    fn hint_vnode(&self, slot: &mut Slot, id: ReplicaId) -> Option<VnodeHandle> {
        let hint: Option<&Hint> = slot.hints.get(&id.module);
        let ended = hint.is_none_or(|hint| hint.vnode.as_ref().is_none_or(VnodeHandle::has_ended));
        let release = if ended { Some(self.inner.config.modules.release(id.module)?) } else { None };
        let hint = slot.hints.entry(id.module).or_default();
        if let Some(release) = release {
            let stores = &self.inner.config.stores;
            let new = || match release.storage {
                StorageKind::Memory => Items::memory(),
                StorageKind::Durable => stores.hint(id.module, id.partition),
            };
            let items = hint.items.get_or_insert_with(new).clone();
            hint.vnode = Some(self.start(id.module, id.partition, release, items, false));
        }
        hint.vnode.clone()
    }
}
