//! The vnode master: the partitions that this node owns, and the vnodes that run in them.
//!
//! Every command for this node passes [`Master::deliver`]; every change of ownership passes [`Master::apply`], in the
//! order of the committed log. Both take the lock of the partition. So a command either enters a vnode's mailbox
//! before the node gives up the partition, and is answered there, or it is handled by the new state (R1, R2).
//!
//! This file has the delivery of commands, and the start and end of vnodes. `apply` follows the log, `handoff` serves
//! the handoffs, `hint` keeps what other nodes lack, and `measure` reports sizes.

mod apply;
pub(super) mod handoff;
mod hint;
mod measure;
pub(super) mod replica;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use annulus_core::contract::Partition;
use annulus_core::ids::{ModuleUid, NodeId, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::ring::RingTable;
use annulus_core::routing::{self, Admission};
use annulus_core::state::{Lineage, StorageKind};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch};

use super::actor::run::{Surroundings, start};
use super::control::{Control, SwapReport};
use super::coverage_limit::CoverageLimiter;
use super::incidents::{Incident, Incidents};
use super::mailbox::{Command, NotAccepted, Reply, VnodeHandle};
use super::release::Release;
use super::slot::{Replica, Slot, SlotStatus, TransferStage};
use super::source::ModuleSource;
use annulus_storage::{Health, Items, Stores};
use replica::ReplicaId;

/// The configuration of a master.
pub struct MasterConfig {
    /// This node.
    pub me: NodeId,
    /// The runtime of the guests.
    pub guests: tokio::runtime::Handle,
    /// Number of worker threads of that runtime: the maximum number of concurrent pages of coverage commands.
    pub workers: usize,
    /// The source of releases.
    pub modules: Arc<dyn ModuleSource>,
    /// The stores of modules with durable host storage.
    pub stores: Stores,
}

/// The vnode master of a node. Cheap to clone.
#[derive(Clone)]
pub struct Master {
    inner: Arc<Inner>,
}

/// A reference that does not keep the master alive, for parts that the master itself keeps alive.
#[derive(Clone)]
pub struct WeakMaster {
    inner: Weak<Inner>,
}

impl WeakMaster {
    /// Return the master, or `None` once its node has ended.
    pub fn upgrade(&self) -> Option<Master> {
        self.inner.upgrade().map(|inner| Master { inner })
    }
}

struct Inner {
    config: MasterConfig,
    ring_size: u32,
    slots: Vec<Mutex<Slot>>,
    incidents: Arc<Incidents>,
    coverage: CoverageLimiter,
    /// Index up to which the committed log is applied to the slots.
    applied: watch::Sender<u64>,
    /// What is known of the last applied state.
    known: Mutex<Option<Known>>,
    /// Log index of the first state that was applied: what it had begun before, a former process may have taken part in.
    first: OnceLock<u64>,
    /// Number of stores that replicas have had.
    generations: AtomicU64,
}

/// The last state that was applied to the slots.
struct Known {
    lineage: Lineage,
    /// The deployed modules, with the number of replicas of each.
    modules: BTreeMap<ModuleUid, usize>,
    /// True if it is from before what the stores on disk have followed.
    is_behind: bool,
}

/// The outcome of a delivery.
pub enum Delivery {
    /// The command is in a mailbox, or answered.
    Taken,
    /// The sender knows a later change of the partition than this node has applied (R2): wait for it with
    /// [`Master::wait_applied`] and deliver again.
    CatchUp(Box<Command>),
}

impl Master {
    /// Create a master that owns no partitions until [`Master::apply`]. `sealed` are the durable seals from the last
    /// run of the node. Complete stages of that run wait for their transfers to end.
    pub fn new(config: MasterConfig, ring: &RingTable, sealed: &[(PartitionId, TransferId)]) -> Self {
        let slots: Vec<_> = ring.partitions.iter().map(|_| Mutex::new(Slot::default())).collect();
        for (partition, transfer) in sealed {
            if let Some(slot) = slots.get(usize::from(partition.0)) {
                slot.lock().sealed = Some(*transfer);
            }
        }
        for found in config.stores.found_stages() {
            if let Some(slot) = slots.get(usize::from(found.partition.0)) {
                slot.lock().stage = Some(TransferStage::found(found));
            }
        }
        let incidents = Arc::new(Incidents::default());
        let ring_size = u32::from(ring.size.get());
        let coverage = CoverageLimiter::new(config.workers);
        Self {
            inner: Arc::new(Inner {
                config,
                ring_size,
                slots,
                incidents,
                coverage,
                applied: watch::Sender::new(0),
                known: Mutex::default(),
                first: OnceLock::new(),
                generations: AtomicU64::new(0),
            }),
        }
    }

    /// Return a reference that does not keep the master alive.
    pub fn downgrade(&self) -> WeakMaster {
        WeakMaster { inner: Arc::downgrade(&self.inner) }
    }

    fn slot(&self, partition: PartitionId) -> Option<MutexGuard<'_, Slot>> {
        self.inner.slots.get(usize::from(partition.0)).map(|slot| slot.lock())
    }

    /// Deliver a command to its vnode, which is started on demand. `version` is the version of the partition by which
    /// the sender routed. Never blocks.
    pub fn deliver(
        &self,
        module: ModuleUid,
        partition: PartitionId,
        version: u64,
        command: Command,
    ) -> Delivery {
        let Some(mut slot) = self.slot(partition) else {
            let message = format!("the ring has no partition {}", partition.0);
            command.reply.send(Err(RequestError::not_applied(ErrorCode::BadArguments, message)));
            return Delivery::Taken;
        };
        // A coordinator of replicas runs its commands at any of them, and no other command may run there.
        let replicated = matches!(command.reply, Reply::Replicated(_));
        let is_member = |replica: &Replica| replica.coming.is_none();
        let holds = if replicated { slot.replicas.get(&module).is_some_and(is_member) } else { slot.held };
        let refused = match routing::admit(version, slot.version, holds) {
            Admission::CatchUp => return Delivery::CatchUp(Box::new(command)),
            Admission::Stale(version) => RequestError::stale_ring(version),
            // The releases of this node may still have it: they follow the log in a task of their own.
            Admission::Admit if self.is_undeployed(&slot, module) => apply::undeployed_error(),
            Admission::Admit => match self.vnode_of(&mut slot, module, partition, replicated) {
                None => RequestError::not_applied(
                    ErrorCode::NotReady,
                    "this node cannot run the module yet; `annulus modules` shows the nodes that do",
                ),
                Some(handle) => match handle.offer(command) {
                    Ok(()) => return Delivery::Taken,
                    Err(NotAccepted::Full(command)) => {
                        let message = "the vnode's mailbox is full; try again later, or slower";
                        command.reply.send(Err(RequestError::not_applied(ErrorCode::Overloaded, message)));
                        return Delivery::Taken;
                    }
                    Err(NotAccepted::Ended(command)) => {
                        // The vnode has ended without a request: the node stops, or its task failed. The next
                        // command starts another one.
                        slot.vnodes.remove(&module);
                        if let Some(replica) = slot.replicas.get_mut(&module) {
                            replica.vnode = None;
                        }
                        let message = "the vnode ended; try again";
                        command.reply.send(Err(RequestError::not_applied(ErrorCode::NotReady, message)));
                        return Delivery::Taken;
                    }
                },
            },
        };
        command.reply.send(Err(refused));
        Delivery::Taken
    }

    /// Return true if the log, as far as it is applied here, has ended this module. A vnode of it must not start again.
    fn is_undeployed(&self, slot: &Slot, module: ModuleUid) -> bool {
        // A module's uid is the index of the entry that created it.
        let known =
            || self.inner.known.lock().as_ref().is_some_and(|known| !known.modules.contains_key(&module));
        let runs = slot.vnodes.contains_key(&module) || slot.replicas.contains_key(&module);
        !runs && module.0 <= slot.applied.0 && known()
    }

    fn vnode_of(
        &self,
        slot: &mut Slot,
        module: ModuleUid,
        partition: PartitionId,
        replicated: bool,
    ) -> Option<VnodeHandle> {
        if replicated {
            self.replica_vnode(slot, ReplicaId { module, partition })
        } else {
            self.vnode(slot, module, partition).cloned()
        }
    }

    /// Return the vnode that serves, started on demand. In a sealed partition it starts sealed.
    fn vnode<'a>(
        &self,
        slot: &'a mut Slot,
        module: ModuleUid,
        partition: PartitionId,
    ) -> Option<&'a VnodeHandle> {
        if !slot.vnodes.contains_key(&module) {
            let release = self.inner.config.modules.release(module)?;
            // The deploy of a module with several replicas is not applied here yet.
            if release.is_replicated() {
                return None;
            }
            let items = self.member_items(module, partition, &release);
            let handle = self.start(module, partition, release, items, true);
            if let Some((_, outgoing)) = &slot.outgoing {
                handle.tell(Control::StartOutgoing(outgoing.clone()));
            }
            if slot.sealed.is_some() {
                // The vnode answers no commands until the outcome of the transfer is known. Then it serves, or redirects
                // its callers to the new owner.
                handle.tell(Control::Seal(slot.seal_round));
            }
            slot.vnodes.insert(module, handle);
        }
        slot.vnodes.get(&module)
    }

    /// Return the items of a vnode that serves.
    fn member_items(&self, module: ModuleUid, partition: PartitionId, release: &Release) -> Items {
        match release.storage {
            StorageKind::Memory => Items::memory(),
            StorageKind::Durable => self.inner.config.stores.member(module, partition),
        }
    }

    /// Start the vnodes of all modules that have items of the partition on disk. Until a vnode of such a module runs, the
    /// partition has items that no handoff, count or measurement would see.
    ///
    /// Return the modules that cannot run here yet.
    fn start_stored(&self, slot: &mut Slot, partition: PartitionId) -> Vec<ModuleUid> {
        let stored = self.inner.config.stores.members_of(partition).into_iter();
        stored.filter(|module| self.vnode(slot, *module, partition).is_none()).collect()
    }

    fn start(
        &self,
        module: ModuleUid,
        partition: PartitionId,
        release: Arc<Release>,
        items: Items,
        complete: bool,
    ) -> VnodeHandle {
        let surroundings = Surroundings {
            guests: self.inner.config.guests.clone(),
            modules: self.inner.config.modules.clone(),
            incidents: self.inner.incidents.clone(),
            permits: self.inner.coverage.queue(module),
        };
        let partition = Partition { id: u32::from(partition.0), ring_size: self.inner.ring_size };
        start(surroundings, module, partition, release, items, complete)
    }

    /// Start a vnode outside of every slot, for benchmarks.
    pub fn start_apart(&self, release: Arc<Release>) -> VnodeHandle {
        self.start(ModuleUid(0), PartitionId(0), release, Items::memory(), true)
    }

    /// Wait until the log is applied to the slots up to `index`.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.inner.applied.subscribe();
        // The sender lives in `self`, so the wait ends only with the index.
        let _ = applied.wait_for(|applied| *applied >= index).await;
    }

    /// Return the vnodes that a recovery set aside: they serve nothing and keep items that may exist nowhere else.
    pub fn set_aside(&self) -> Vec<VnodeHandle> {
        self.inner.slots.iter().flat_map(|slot| slot.lock().aside.clone()).collect()
    }

    /// Return the serving vnodes of a partition. Those of modules with items on disk are started first.
    pub fn vnodes(&self, partition: PartitionId) -> Vec<VnodeHandle> {
        let Some(mut slot) = self.slot(partition) else { return Vec::new() };
        if slot.held {
            self.start_stored(&mut slot, partition);
        }
        slot.vnodes.values().cloned().collect()
    }

    /// Swap all vnodes of a module to a release, all partitions at once. Return the report of each vnode, or the reason
    /// why it still runs the old release.
    pub async fn swap(
        &self,
        module: ModuleUid,
        release: &Arc<Release>,
    ) -> Vec<(PartitionId, Result<SwapReport, String>)> {
        let mut waiting = Vec::new();
        for slot in &self.inner.slots {
            let slot = slot.lock();
            let staged = slot.stage.as_ref().and_then(|stage| stage.vnodes.get(&module));
            let replica = slot.replicas.get(&module).and_then(|replica| replica.vnode.as_ref());
            let hint = slot.hints.get(&module).and_then(|hint| hint.vnode.as_ref());
            for vnode in slot.vnodes.get(&module).into_iter().chain(staged).chain(replica).chain(hint) {
                let (answer, report) = oneshot::channel();
                vnode.tell(Control::Swap(release.clone(), answer));
                waiting.push((vnode.partition, report));
            }
        }
        let mut reports = Vec::with_capacity(waiting.len());
        for (partition, report) in waiting {
            // A vnode that ended during the swap, because its partition moved, does not run the old release either.
            if let Ok(report) = report.await {
                reports.push((partition, report));
            }
        }
        reports
    }

    /// Shut all vnodes down and wait for their ends. Later commands are refused.
    pub async fn stop(&self) {
        let error = RequestError::not_applied(ErrorCode::ShuttingDown, "the node stops");
        let mut ends = Vec::new();
        for slot in &self.inner.slots {
            let mut slot = slot.lock();
            slot.held = false;
            let replicas = std::mem::take(&mut slot.replicas).into_values();
            ends.extend(VnodeHandle::end_all(replicas.filter_map(|replica| replica.vnode), &error, false));
            let hints = std::mem::take(&mut slot.hints).into_values();
            ends.extend(VnodeHandle::end_all(hints.filter_map(|hint| hint.vnode), &error, false));
            ends.extend(VnodeHandle::end_all(std::mem::take(&mut slot.vnodes).into_values(), &error, false));
            ends.extend(VnodeHandle::end_all(std::mem::take(&mut slot.aside), &error, false));
            // A complete stage on disk may be flipped while this node is down.
            ends.extend(VnodeHandle::end_all(slot.take_stage().into_values(), &error, false));
        }
        for end in ends {
            let _ = end.await;
        }
        self.inner.config.stores.close().await;
    }

    /// Return the state of the stores on disk.
    pub fn storage(&self) -> Health {
        self.inner.config.stores.health()
    }

    /// Record an incident.
    pub fn note(&self, kind: &str, module: &str, partition: Option<u32>, reason: &str) {
        self.inner.incidents.note(kind, module, partition, reason);
    }

    /// Drop the incidents of a module that was undeployed.
    pub fn forget_incidents(&self, module: &str) {
        self.inner.incidents.forget(module);
    }

    /// Drop the incidents up to this number: an operator has handled them.
    pub fn acknowledge(&self, up_to: u64) {
        self.inner.incidents.acknowledge(up_to);
    }

    /// Return the latest incidents.
    pub fn incidents(&self) -> Vec<Incident> {
        self.inner.incidents.list()
    }

    /// Return a reference that shows whether the master still exists, for the detection of leaks.
    pub fn remains(&self) -> Weak<dyn Any + Send + Sync> {
        let held: Arc<dyn Any + Send + Sync> = self.inner.clone();
        Arc::downgrade(&held)
    }

    /// Return a summary of all partitions.
    pub fn status(&self) -> Vec<SlotStatus> {
        let one = |(id, slot): (usize, &Mutex<Slot>)| {
            let slot = slot.lock();
            SlotStatus {
                partition: PartitionId(u16::try_from(id).unwrap_or(u16::MAX)),
                held: slot.held,
                sealed: slot.sealed.is_some(),
                vnodes: slot.running().count(),
                replicas: slot.replicas.len(),
                building: slot.replicas.values().filter(|replica| !replica.complete).count(),
                staging: slot.stage.as_ref().map_or(0, |stage| stage.vnodes.len()),
                aside: slot.aside.len(),
                traps: slot.running().map(|vnode| vnode.gauge.traps.load(Ordering::Relaxed)).sum(),
                in_back_off: slot
                    .running()
                    .filter(|vnode| vnode.gauge.back_off_ms.load(Ordering::Relaxed) > 0)
                    .count(),
            }
        };
        self.inner.slots.iter().enumerate().map(one).collect()
    }
}

#[cfg(test)]
mod tests;
