//! The stores of modules with several replicas: which this node keeps, and which of them are complete (R5).
//!
//! The place of this node in the replica set decides: it keeps a module with `n` replicas if it is among the first `n`, or
//! will be by the pending transfer. Whether it is the first of them makes no difference to a store.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::item::RangeDigest;
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::ring::Partition;
use annulus_core::role::Role;
use annulus_core::state::StorageKind;
use tokio::sync::watch;

use super::{Master, apply};
use crate::control::Control;
use crate::mailbox::VnodeHandle;
use crate::slot::{Replica, Slot};
use annulus_core::request::RequestError;
use annulus_storage::{Items, StorageError};

/// A partition of a module with several replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The module.
    pub module: ModuleUid,
    /// The partition.
    pub partition: PartitionId,
}

/// One store of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaStore {
    generation: u64,
    /// True if acknowledged writes may have been lost with a former store.
    pub lost: bool,
}

/// The reason why this node gives no replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReplica {
    /// The sender knows a later change of the partition than this node has applied (R2): wait for it with
    /// [`Master::wait_applied`] and ask again.
    CatchUp,
    /// By this version of the partition, this node keeps none of it.
    Elsewhere(u64),
    /// The module cannot run here yet, or was undeployed.
    NotReady,
}

impl Master {
    /// Return the vnode of a replica, started on demand, with the version of the group here (`quorum`). A message of another
    /// node is judged by membership and not by an equal version: what it says of items is true at any later version.
    /// `version` is that of the sender.
    ///
    /// # Errors
    /// This node gives no replica, for the returned reason.
    pub fn replica(&self, id: ReplicaId, version: u64) -> Result<(VnodeHandle, u64), NoReplica> {
        let mut slot = self.slot(id.partition).ok_or(NoReplica::NotReady)?;
        if version > slot.sets_version {
            return Err(NoReplica::CatchUp);
        }
        if !slot.replicas.contains_key(&id.module) {
            // Either the module is not replicated here, or this node has not applied its deploy yet.
            let known = self.replicas_of(id.module).is_some();
            let version = slot.sets_version;
            return Err(if known { NoReplica::Elsewhere(version) } else { NoReplica::NotReady });
        }
        let version = slot.sets_version;
        let vnode = self.replica_vnode(&mut slot, id).ok_or(NoReplica::NotReady)?;
        Ok((vnode, version))
    }

    /// Return the digest of the items of a key at a complete replica, if that takes neither its vnode nor the disk. It
    /// covers every item that this replica has acknowledged.
    pub fn digest_in_memory(&self, id: ReplicaId, key: &[u8]) -> Option<RangeDigest> {
        let items = {
            let slot = self.slot(id.partition)?;
            let replica = slot.replicas.get(&id.module).filter(|replica| replica.complete)?;
            replica.items.clone()?
        };
        items.digest_in_memory(key)
    }

    /// Return the replicas that this node keeps.
    pub fn replicas(&self) -> Vec<ReplicaId> {
        let all = |partition: PartitionId, slot: &Slot| {
            slot.replicas.keys().map(|module| ReplicaId { module: *module, partition }).collect::<Vec<_>>()
        };
        self.with_slots(all)
    }

    /// Return the present store of a replica; `None` if this node keeps none.
    pub fn store(&self, id: ReplicaId) -> Option<ReplicaStore> {
        let slot = self.slot(id.partition)?;
        let replica = slot.replicas.get(&id.module)?;
        Some(ReplicaStore { generation: replica.generation, lost: replica.lost })
    }

    /// Return the complete replicas of pending transfers, each with its transfer.
    pub fn arrived(&self) -> Vec<(ReplicaId, TransferId)> {
        let mut all = Vec::new();
        for (partition, slot) in (0u16..).zip(&self.inner.slots) {
            let slot = slot.lock();
            let complete = slot.replicas.iter().filter(|(_, replica)| replica.complete);
            let id = |module: &ModuleUid| ReplicaId { module: *module, partition: PartitionId(partition) };
            all.extend(complete.filter_map(|(module, replica)| Some((id(module), replica.coming?))));
        }
        all
    }

    /// Return the replicas that this node keeps and that are not complete.
    pub fn building(&self) -> Vec<ReplicaId> {
        let incomplete = |partition: PartitionId, slot: &Slot| {
            let building = slot.replicas.iter().filter(|(_, replica)| !replica.complete);
            building.map(|(module, _)| ReplicaId { module: *module, partition }).collect::<Vec<_>>()
        };
        self.with_slots(incomplete)
    }

    /// Return the replicas that this node keeps on disk and that are complete without a record that says so.
    pub fn unrecorded(&self) -> Vec<ReplicaId> {
        let stores = &self.inner.config.stores;
        let complete = |partition: PartitionId, slot: &Slot| {
            let complete = slot.replicas.iter().filter(|(_, replica)| replica.complete);
            complete.map(|(module, _)| ReplicaId { module: *module, partition }).collect::<Vec<_>>()
        };
        let mut replicas = self.with_slots(complete);
        replicas.retain(|id| self.is_durable(id.module) && !stores.is_recorded(id.module, id.partition));
        replicas
    }

    pub(super) fn with_slots(&self, each: impl Fn(PartitionId, &Slot) -> Vec<ReplicaId>) -> Vec<ReplicaId> {
        let mut all = Vec::new();
        for (partition, slot) in (0u16..).zip(&self.inner.slots) {
            all.extend(each(PartitionId(partition), &slot.lock()));
        }
        all
    }

    /// Make a replica complete, durably if its items are on disk: it serves from now on. `store` is the one that has been
    /// built: a transfer that has started again since then has another one, which has nothing.
    ///
    /// # Errors
    /// The record cannot be written, or another store has replaced this one. The replica is as it was.
    pub async fn complete(&self, id: ReplicaId, store: ReplicaStore) -> Result<(), StorageError> {
        let is_it = |replica: &Replica| replica.generation == store.generation;
        if self.is_durable(id.module) {
            let items = {
                let mut slot = self.slot(id.partition).ok_or(StorageError::Closed)?;
                slot.replicas.get(&id.module).filter(|replica| is_it(replica)).ok_or(StorageError::Closed)?;
                // The vnode creates the store of a partition that has had no item yet.
                self.replica_vnode(&mut slot, id).ok_or(StorageError::Closed)?;
                slot.replicas.get(&id.module).and_then(|replica| replica.items.clone())
            };
            self.inner.config.stores.complete_replica(&items.ok_or(StorageError::Closed)?).await?;
        }
        let mut slot = self.slot(id.partition).ok_or(StorageError::Closed)?;
        let replica = slot.replicas.get_mut(&id.module).filter(|replica| is_it(replica));
        let replica = replica.ok_or(StorageError::Closed)?;
        (replica.complete, replica.lost) = (true, false);
        if let Some(vnode) = &replica.vnode {
            vnode.tell(Control::Complete);
        }
        Ok(())
    }

    /// Return the index of the last applied state, and its changes.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.inner.applied.subscribe()
    }

    /// Return the number of replicas of a module with several, as far as the log is applied here.
    pub(super) fn replicas_of(&self, module: ModuleUid) -> Option<usize> {
        self.inner.known.lock().as_ref()?.modules.get(&module).copied().filter(|n| *n > 1)
    }

    pub(super) fn replica_vnode(&self, slot: &mut Slot, id: ReplicaId) -> Option<VnodeHandle> {
        let replica = slot.replicas.get_mut(&id.module)?;
        if replica.vnode.is_none() {
            let release = self.inner.config.modules.release(id.module)?;
            let stores = &self.inner.config.stores;
            let new = || match release.storage {
                StorageKind::Memory => Items::memory(),
                StorageKind::Durable => {
                    let since = replica.coming.unwrap_or(TransferId(0));
                    stores.replica(id.module, id.partition, replica.complete, since)
                }
            };
            let items = replica.items.get_or_insert_with(new).clone();
            replica.vnode = Some(self.start(id.module, id.partition, release, items, replica.complete));
        }
        replica.vnode.clone()
    }

    /// Give a slot the replicas that the applied state gives to this node, and end those of other nodes.
    pub(super) fn apply_replicas(
        &self,
        slot: &mut Slot,
        (id, partition): (PartitionId, &Partition),
        modules: &BTreeMap<ModuleUid, usize>,
        how: Following,
    ) {
        let me = self.inner.config.me;
        let pending = partition.pending.as_ref().map(|pending| pending.id);
        let coming = |n: usize| match partition.role_of(me, n) {
            Role::Owner | Role::Replica => Some(None),
            Role::Successor => Some(pending),
            Role::Outsider => None,
        };
        let replicated = modules.iter().filter(|(_, n)| **n > 1);
        let kept: BTreeMap<ModuleUid, Option<TransferId>> =
            replicated.filter_map(|(uid, n)| Some((*uid, coming(*n)?))).collect();
        let ends = |(uid, replica): &(&ModuleUid, &Replica)| match kept.get(uid) {
            // A successor that has become a member keeps what it has.
            Some(None) => false,
            // A transfer that starts again starts with an empty store: it may have missed writes in between.
            Some(coming) => replica.coming != *coming,
            None => true,
        };
        let gone: Vec<ModuleUid> = slot.replicas.iter().filter(ends).map(|(uid, _)| *uid).collect();
        for module in gone.into_iter().filter(|module| module.0 <= how.index) {
            self.end_replica(slot, id, module, modules.contains_key(&module), how);
        }
        for (module, coming) in kept {
            if let Some(replica) = slot.replicas.get_mut(&module) {
                replica.coming = coming;
                continue;
            }
            let complete = self.is_born_complete(module, id, partition, coming);
            let had_items = self.inner.config.modules.had_items(module);
            let first = self.inner.first.get().copied().unwrap_or(0);
            // A former process may have acknowledged writes as the successor of a transfer that began before this one.
            let lost = !complete && coming.is_none_or(|transfer| had_items && transfer.0 <= first);
            let generation = self.inner.generations.fetch_add(1, Ordering::Relaxed);
            let replica = Replica { complete, generation, lost, coming, ..Replica::default() };
            slot.replicas.insert(module, replica);
        }
    }

    /// End the vnode and the store of a replica.
    fn end_replica(
        &self,
        slot: &mut Slot,
        id: PartitionId,
        module: ModuleUid,
        is_deployed: bool,
        how: Following,
    ) {
        let Some(Replica { vnode, .. }) = slot.replicas.remove(&module) else { return };
        let stores = &self.inner.config.stores;
        if how.recovers {
            stores.set_replica_aside(module, id);
            let vnodes = vnode.map(|vnode| (module, vnode)).into_iter().collect();
            return self.set_vnodes_aside(vnodes, slot, id);
        }
        let stale = || RequestError::stale_ring(slot.version);
        let error = if is_deployed { stale() } else { apply::undeployed_error() };
        drop(VnodeHandle::end_all(vnode, &error, true));
        if !how.is_behind && is_deployed {
            stores.drop_replica(module, id);
        }
    }

    /// Return true if a store that this process has not used yet has all that it should have. Nothing was acknowledged
    /// in the name of this node, because the set is that of the deploy and no process of the node has had an item; or
    /// the record of the store says that it is complete.
    fn is_born_complete(
        &self,
        module: ModuleUid,
        id: PartitionId,
        partition: &Partition,
        coming: Option<TransferId>,
    ) -> bool {
        let stores = &self.inner.config.stores;
        let recorded = stores.is_complete(module, id);
        if let Some(transfer) = coming {
            match recorded {
                // The former process has reported it, or was about to.
                Some((complete, since)) if since == transfer => return complete,
                Some(_) => stores.drop_replica(module, id),
                None => {}
            }
            return false;
        }
        // The uid of a module is the index of the entry that deployed it.
        let since_deploy = partition.version <= module.0;
        let had_items =
            || self.inner.config.modules.had_items(module) && !mutants::on(Mutant::TrustEmptyMemory);
        recorded.map_or_else(|| since_deploy && !had_items(), |(complete, _)| complete)
    }

    /// Drop the stores on disk of partitions that moved while this node was down.
    pub(super) fn drop_unkept(&self, how: Following) {
        let stores = &self.inner.config.stores;
        for (module, partition) in stores.replicas() {
            let Some(slot) = self.slot(partition) else { continue };
            if !slot.replicas.contains_key(&module) && self.replicas_of(module).is_some() {
                if how.recovers {
                    stores.set_replica_aside(module, partition);
                } else {
                    stores.drop_replica(module, partition);
                }
            }
        }
    }
}

/// How a state follows the one before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Following {
    /// Log index of the state.
    pub(super) index: u64,
    /// True if it begins another lineage than the last state.
    pub(super) recovers: bool,
    /// True if it is from before what the stores on disk have followed.
    pub(super) is_behind: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use annulus_core::ids::NodeId;
    use annulus_core::item::Item;
    use annulus_core::keyspace::RingSize;
    use annulus_core::ring::{RingTable, Transfer};
    use annulus_core::state::Lineage;
    use annulus_storage::Stores;
    use tokio::sync::oneshot;

    use super::*;
    use crate::master::MasterConfig;
    use crate::native_kv::native_kv;
    use crate::release::Release;
    use crate::source::ModuleSource;

    const ME: NodeId = NodeId(1);
    const MODULE: ModuleUid = ModuleUid(20);
    const HERE: ReplicaId = ReplicaId { module: MODULE, partition: PartitionId(3) };

    /// The releases of a node whose former process had items, or not.
    struct Source {
        had_items: bool,
    }

    impl ModuleSource for Source {
        fn release(&self, _: ModuleUid) -> Option<Arc<Release>> {
            Some(Arc::new(native_kv().replicated(2)))
        }

        fn had_items(&self, _: ModuleUid) -> bool {
            self.had_items
        }
    }

    fn ring(replicas: &[u64], version: u64) -> RingTable {
        let size = RingSize::try_from(16).unwrap();
        let nodes: Vec<NodeId> = replicas.iter().copied().map(NodeId).collect();
        let partitions = size.partitions().map(|_| Partition::held_by(nodes.clone(), version)).collect();
        RingTable { size, epoch: version, partitions }
    }

    fn master(had_items: bool) -> Master {
        let (guests, modules) = (tokio::runtime::Handle::current(), Arc::new(Source { had_items }));
        let config = MasterConfig { me: ME, guests, workers: 1, modules, stores: Stores::none() };
        Master::new(config, &ring(&[1], 1), &[])
    }

    fn apply(master: &Master, ring: &RingTable, index: u64) {
        master.apply(ring, &BTreeMap::from([(MODULE, 2)]), index, Lineage::default());
    }

    async fn complete(master: &Master) -> Result<(), StorageError> {
        master.complete(HERE, master.store(HERE).unwrap()).await
    }

    #[tokio::test]
    async fn a_new_store_is_complete_only_if_nothing_was_acknowledged_in_its_name() {
        // In the set since before the deploy, whatever its place, and without a former process that had items.
        let since_deploy = ring(&[2, 1], 5);
        for (had_items, ring, building) in [
            (false, &since_deploy, 0),
            (true, &since_deploy, 16),
            // It came into the set later: others have acknowledged writes.
            (false, &ring(&[2, 1], 25), 16),
        ] {
            let master = master(had_items);
            apply(&master, ring, 30);
            assert_eq!((master.building().len(), master.replicas().len()), (building, 16));
        }
        // The third of the set keeps nothing of a module with two replicas.
        let master = master(false);
        apply(&master, &ring(&[2, 3, 1], 5), 30);
        assert_eq!(master.replicas(), []);
    }

    #[tokio::test]
    async fn a_store_that_is_built_serves_from_then_on_and_ends_with_its_place() {
        let master = master(true);
        assert_eq!(master.replica(HERE, 0).err(), Some(NoReplica::NotReady));
        apply(&master, &ring(&[2, 1], 5), 30);
        assert_eq!(master.replica(HERE, 9).err(), Some(NoReplica::CatchUp));
        // What it is told of items is judged by membership, whatever the sender's version.
        assert_eq!(master.replica(HERE, 2).unwrap().1, 5);
        complete(&master).await.unwrap();
        assert_eq!(master.building().len(), 15);
        // A removed member changes the version and not what the others have.
        apply(&master, &ring(&[1], 40), 40);
        assert_eq!((master.building().len(), master.replica(HERE, 40).unwrap().1), (15, 40));
        let built = master.store(HERE).unwrap();
        apply(&master, &ring(&[2, 3], 50), 50);
        assert_eq!(master.replica(HERE, 50).err(), Some(NoReplica::Elsewhere(50)));
        assert!(master.complete(HERE, built).await.is_err());
        // It has lost its items by the time it is back.
        apply(&master, &ring(&[2, 1], 60), 60);
        assert_eq!(master.building().len(), 16);
    }

    #[tokio::test]
    async fn a_hint_is_no_replica_and_is_dropped_only_if_it_got_no_write_since_it_was_read() {
        let master = master(false);
        let write = |version: u64| {
            let (merged, answer) = oneshot::channel();
            let items = vec![Item { key: vec![1], sort: vec![], value: vec![2], deleted: false }];
            let message = |items: Vec<Item>, _: u64| {
                Control::Merge(items, Box::new(move |told: Result<(), String>| drop(merged.send(told))))
            };
            (master.hint(HERE, version, items, message).map_err(|(why, _)| why), answer)
        };
        // Nothing is known of the module, and then this node is one of its replicas.
        assert_eq!(write(0).0, Err(NoReplica::NotReady));
        apply(&master, &ring(&[2, 1], 5), 30);
        assert_eq!(write(5).0, Err(NoReplica::Elsewhere(5)));
        apply(&master, &ring(&[2, 3], 40), 40);
        assert_eq!(write(41).0, Err(NoReplica::CatchUp));
        assert!(master.hints().is_empty() && master.kept_hint(HERE).is_none());

        let (given, merged) = write(40);
        assert_eq!((given, merged.await.unwrap()), (Ok(true), Ok(())));
        assert_eq!((master.hints(), master.replicas()), (vec![HERE], vec![]));
        let (_, read) = master.kept_hint(HERE).unwrap();
        let (given, merged) = write(40);
        assert_eq!((given, merged.await.unwrap()), (Ok(false), Ok(())));
        assert!(!master.drop_hint(HERE, read) && master.hints() == [HERE]);
        // It stays apart from a replica that this node gets later.
        apply(&master, &ring(&[2, 1], 50), 50);
        assert_eq!((master.building().len(), master.hints()), (16, vec![HERE]));
        let (_, read) = master.kept_hint(HERE).unwrap();
        assert!(master.drop_hint(HERE, read) && master.hints().is_empty());
    }

    fn moving(replicas: &[u64], version: u64, pending: u64, target: &[u64]) -> RingTable {
        let mut ring = ring(replicas, version);
        let target: Vec<NodeId> = target.iter().copied().map(NodeId).collect();
        for partition in &mut ring.partitions {
            partition.pending = Some(Transfer::new(TransferId(pending), target.clone()));
        }
        ring
    }

    #[tokio::test]
    async fn the_sets_get_a_later_version_when_a_transfer_is_dropped() {
        let master = master(false);
        apply(&master, &moving(&[1, 2], 5, 30, &[2, 3]), 30);
        assert_eq!(master.replica(HERE, 33).err(), Some(NoReplica::CatchUp));
        let mut dropped = ring(&[1, 2], 5);
        dropped.partitions.iter_mut().for_each(|partition| partition.dropped = 33);
        apply(&master, &dropped, 33);
        assert_eq!(master.replica(HERE, 33).unwrap().1, 33);
    }

    #[tokio::test]
    async fn a_successor_has_a_store_that_serves_nothing_until_the_flip() {
        let master = master(false);
        apply(&master, &moving(&[2, 3], 5, 30, &[2, 1]), 30);
        assert_eq!((master.building().len(), master.store(HERE).unwrap().lost), (16, false));
        // It takes the writes of those that know of the transfer, and of others.
        assert_eq!(master.replica(HERE, 30).unwrap().1, 30);
        assert_eq!(master.replica(HERE, 31).err(), Some(NoReplica::CatchUp));
        complete(&master).await.unwrap();
        assert_eq!(master.arrived(), [(HERE, TransferId(30))]);
        assert!(master.slot(HERE.partition).unwrap().replicas[&MODULE].coming.is_some(), "it is no member");
        // The transfer starts again: what was written in between is unknown here.
        let before = master.store(HERE).unwrap();
        apply(&master, &moving(&[2, 3], 5, 35, &[2, 1]), 35);
        assert_eq!((master.building().len(), master.arrived().len()), (16, 0));
        // A build that has not heard of that completes nothing.
        assert!(master.complete(HERE, before).await.is_err());
        assert_eq!(master.building().len(), 16);
        complete(&master).await.unwrap();
        let mut flipped = ring(&[2, 1], 40);
        flipped.partitions.iter_mut().for_each(|partition| partition.made_by = TransferId(35));
        apply(&master, &flipped, 40);
        assert_eq!((master.building().len(), master.arrived().len()), (15, 0));
        assert_eq!(master.replica(HERE, 40).unwrap().1, 40);
        // A process that may have acknowledged writes as a successor knows that it has lost them.
        let next = self::master(true);
        apply(&next, &moving(&[2, 3], 5, 30, &[2, 1]), 36);
        assert!(next.store(HERE).unwrap().lost);
        // Those of a transfer that begins now are not among them.
        apply(&next, &moving(&[2, 3], 5, 50, &[2, 1]), 50);
        assert!(!next.store(HERE).unwrap().lost);
    }

    #[tokio::test]
    async fn a_vnode_that_ends_by_itself_leaves_its_items_to_the_next() {
        let master = master(false);
        apply(&master, &ring(&[1, 2], 5), 30);
        let items = || master.slot(HERE.partition).unwrap().replicas[&MODULE].items.clone();
        drop(master.replica(HERE, 0).unwrap());
        let first = items().unwrap();
        master.slot(HERE.partition).unwrap().replicas.get_mut(&MODULE).unwrap().vnode = None;
        drop(master.replica(HERE, 0).unwrap());
        assert!(first.is_same(&items().unwrap()));
    }
}
