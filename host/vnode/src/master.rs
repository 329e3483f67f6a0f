//! The vnode master: which partitions this node holds, and who runs in them.
//!
//! Every command for this node passes [`Master::deliver`]; every change of ownership passes
//! [`Master::apply`], in the order of the committed log. Both take the partition's lock, so a
//! command is either in a vnode's mailbox before the partition is given away, and is answered
//! there, or it meets the new truth (R1, R2).

mod handoff;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use annulus_core::holding::{Change, Holding};
use annulus_core::ids::{ModuleUid, NodeId, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::ring::RingTable;
use annulus_core::routing::{self, Gate};
use annulus_core::state::Lineage;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch};

pub use handoff::{IncompleteStage, Reading};

use super::actor;
use super::guest::Behaviour;
use super::mailbox::{Command, Control, NoRoom, SwapReport, VnodeHandle};
use super::slot::{Incident, Incidents, Slot, SlotStatus};
use super::turns::Turns;
use annulus_wasm::Partition;

/// A write waits for this.
pub type Filled<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Where the master learns what a module's vnodes run.
pub trait ModuleSource: Send + Sync + 'static {
    /// What vnodes of this module run on this node now; `None` if it cannot run here (yet).
    fn behaviour(&self, module: ModuleUid) -> Option<Arc<Behaviour>>;

    /// A vnode of this module may have been given its first item since it was made. The write is answered after
    /// this.
    fn filled(&self, _module: ModuleUid) -> Filled<'_> {
        Box::pin(std::future::ready(()))
    }
}

/// What a master needs.
pub struct MasterConfig {
    /// This node.
    pub me: NodeId,
    /// Where guests run.
    pub guests: tokio::runtime::Handle,
    /// How many of them run at a time: no more pages of commands that go everywhere are worked on at once.
    pub workers: usize,
    /// What they run.
    pub modules: Arc<dyn ModuleSource>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Master {
    inner: Arc<Inner>,
}

/// A master that may be gone: for those whom the master itself holds on to.
#[derive(Clone)]
pub struct WeakMaster {
    inner: Weak<Inner>,
}

impl WeakMaster {
    /// The master, while its node lives.
    pub fn upgrade(&self) -> Option<Master> {
        self.inner.upgrade().map(|inner| Master { inner })
    }
}

struct Inner {
    config: MasterConfig,
    ring_size: u32,
    slots: Vec<Mutex<Slot>>,
    incidents: Arc<Incidents>,
    turns: Turns,
    /// Index up to which the committed log is in the slots.
    applied: watch::Sender<u64>,
    /// The history that log is of, and the modules that it had.
    known: Mutex<Option<(Lineage, Vec<ModuleUid>)>>,
}

/// What became of a command that was given to the master.
pub enum Delivery {
    /// It is in a mailbox or answered.
    Taken,
    /// The sender knows a later change of the partition than this node has applied (R2):
    /// wait for it with [`Master::wait_applied`] and deliver again.
    Later(Box<Command>),
}

impl Master {
    /// A master of no partitions until [`Master::apply`]. `sealed` are the seals that were
    /// durable when the node stopped.
    pub fn new(config: MasterConfig, ring: &RingTable, sealed: &[(PartitionId, TransferId)]) -> Self {
        let slots: Vec<_> = ring.partitions.iter().map(|_| Mutex::new(Slot::default())).collect();
        for (partition, transfer) in sealed {
            if let Some(slot) = slots.get(usize::from(partition.0)) {
                slot.lock().sealed = Some(*transfer);
            }
        }
        let incidents = Arc::new(Incidents::default());
        let ring_size = u32::from(ring.size.get());
        let turns = Turns::new(config.workers);
        Self {
            inner: Arc::new(Inner {
                config,
                ring_size,
                slots,
                incidents,
                turns,
                applied: watch::Sender::new(0),
                known: Mutex::default(),
            }),
        }
    }

    /// Does not keep the master alive.
    pub fn downgrade(&self) -> WeakMaster {
        WeakMaster { inner: Arc::downgrade(&self.inner) }
    }

    fn slot(&self, partition: PartitionId) -> Option<MutexGuard<'_, Slot>> {
        self.inner.slots.get(usize::from(partition.0)).map(|slot| slot.lock())
    }

    /// Gives a command to its vnode, which is started if it does not run. Never blocks.
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
        let refused = match routing::gate(version, slot.version, slot.held) {
            Gate::Later => return Delivery::Later(Box::new(command)),
            Gate::Stale(version) => RequestError::stale_ring(version),
            Gate::Serve => match self.vnode(&mut slot, module, partition) {
                None => RequestError::not_applied(
                    ErrorCode::NotReady,
                    "this node cannot run the module yet; `annulus modules` shows who runs what",
                ),
                Some(handle) => match handle.offer(command) {
                    Ok(()) => return Delivery::Taken,
                    Err(NoRoom::Full(command)) => {
                        let message = "the vnode's mailbox is full; try again later, or slower";
                        command.reply.send(Err(RequestError::not_applied(ErrorCode::Overloaded, message)));
                        return Delivery::Taken;
                    }
                    Err(NoRoom::Ended(command)) => {
                        // It ended under us (the node stops, or its task failed): a fresh one
                        // takes the next command.
                        slot.vnodes.remove(&module);
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

    /// The vnode that serves, started if need be. A sealed partition starts none: its
    /// commands wait in the sealed vnodes' mailboxes, or are told to come back.
    fn vnode<'a>(
        &self,
        slot: &'a mut Slot,
        module: ModuleUid,
        partition: PartitionId,
    ) -> Option<&'a VnodeHandle> {
        if !slot.vnodes.contains_key(&module) {
            let behaviour = self.inner.config.modules.behaviour(module)?;
            let handle = self.start(module, partition, behaviour);
            if let Some((_, outgoing)) = &slot.outgoing {
                handle.tell(Control::StartOutgoing(outgoing.clone()));
            }
            if slot.sealed.is_some() {
                // Started empty behind the seal: it answers nothing until the outcome is
                // known, then either serves or sends its callers to the new holder.
                handle.tell(Control::Seal(slot.seal_round));
            }
            slot.vnodes.insert(module, handle);
        }
        slot.vnodes.get(&module)
    }

    fn start(&self, module: ModuleUid, partition: PartitionId, behaviour: Arc<Behaviour>) -> VnodeHandle {
        let at = Partition { id: u32::from(partition.0), ring_size: self.inner.ring_size };
        let (incidents, turns) = (self.inner.incidents.clone(), self.inner.turns.queue(module));
        actor::start(&self.inner.config, module, at, behaviour, incidents, turns)
    }

    /// A vnode outside of every slot, for benchmarks.
    pub fn start_apart(&self, behaviour: Arc<Behaviour>) -> VnodeHandle {
        self.start(ModuleUid(0), PartitionId(0), behaviour)
    }

    /// Waits until the log is in the slots up to `index`.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.inner.applied.subscribe();
        // The sender lives in `self`, so waiting ends only with the index.
        let _ = applied.wait_for(|applied| *applied >= index).await;
    }

    /// Brings the slots up to a committed ring. `index` is the log index of that state; calls
    /// come in log order. After a recovery, answers the partitions whose items are kept aside here, and may
    /// be nowhere else.
    pub fn apply(
        &self,
        ring: &RingTable,
        modules: &[ModuleUid],
        index: u64,
        lineage: Lineage,
    ) -> Vec<PartitionId> {
        let me = self.inner.config.me;
        let before = self.inner.known.lock().replace((lineage, modules.to_vec()));
        let recovers = before.as_ref().is_some_and(|(before, _)| *before != lineage);
        // A recovered state may be from before a module's deploy: what it lacks was not undeployed.
        let undeployed = |uid: &ModuleUid| {
            let had = before.as_ref().is_some_and(|(_, had)| had.contains(uid));
            had && !recovers && !modules.contains(uid)
        };
        let mut aside = Vec::new();
        for (id, partition) in ring.size.partitions().zip(&ring.partitions) {
            let Some(mut slot) = self.slot(id) else { continue };
            let mut holding = Holding {
                version: slot.version,
                held: slot.held,
                sealed: slot.sealed,
                staged: slot.staging.as_ref().map(|staging| (staging.transfer, staging.complete)),
            };
            let changes =
                if recovers { holding.recover(partition, me) } else { holding.apply(partition, me) };
            (slot.version, slot.held, slot.sealed) = (holding.version, holding.held, holding.sealed);
            slot.applied = (index, partition.pending.as_ref().map(|pending| pending.id));
            for change in changes {
                // Without modules there was nothing to lose.
                if change != Change::TakeEmpty || !modules.is_empty() {
                    self.carry_out(change, &mut slot, id, modules);
                }
            }
            // A module's uid is the index that made it. A vnode of a later one runs already where another
            // task was quicker to learn of it: this older state says nothing of it.
            let older = |uid: &ModuleUid| uid.0 <= index || mutants::on(Mutant::EndWhatIsNewer);
            let gone = |uid: &&ModuleUid| older(uid) && !modules.contains(uid);
            let gone: Vec<ModuleUid> = slot.vnodes.keys().filter(gone).copied().collect();
            let gone: BTreeMap<_, _> = gone.iter().filter_map(|uid| slot.vnodes.remove_entry(uid)).collect();
            if recovers && !gone.is_empty() {
                self.keep_aside(gone, &mut slot, id);
            } else {
                end_all(gone, &undeployed_error(), true);
            }
            let (gone, kept): (Vec<_>, Vec<_>) =
                std::mem::take(&mut slot.aside).into_iter().partition(|vnode| undeployed(&vnode.module));
            slot.aside = kept;
            for vnode in gone {
                end_all([(vnode.module, vnode)].into(), &undeployed_error(), true);
            }
            // Also what another recovery left here: the state that it told of this is not the one that holds now.
            if recovers && !slot.aside.is_empty() {
                aside.push(id);
            }
        }
        self.inner.applied.send_replace(index);
        aside
    }

    /// Vnodes that serve nothing and keep what a recovery left with this node alone.
    pub fn set_aside(&self) -> Vec<VnodeHandle> {
        self.inner.slots.iter().flat_map(|slot| slot.lock().aside.clone()).collect()
    }

    fn keep_aside(&self, vnodes: BTreeMap<ModuleUid, VnodeHandle>, slot: &mut Slot, id: PartitionId) {
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

    /// What a partition's modules may have lost. Which of them had items here nobody knows.
    fn note_loss(&self, modules: &[ModuleUid], id: PartitionId, reason: &str) {
        for module in modules {
            let behaviour = self.inner.config.modules.behaviour(*module);
            let name = behaviour.map_or_else(|| module.to_string(), |behaviour| behaviour.name.to_string());
            self.inner.incidents.note("possible-loss", &name, Some(u32::from(id.0)), reason);
        }
    }

    fn carry_out(&self, change: Change, slot: &mut Slot, id: PartitionId, modules: &[ModuleUid]) {
        let elsewhere = RequestError::stale_ring(slot.version);
        let staged = |slot: &mut Slot| slot.staging.take().map(|staging| staging.vnodes).unwrap_or_default();
        match change {
            Change::Promote => slot.vnodes = staged(slot),
            Change::DropIncomplete => {
                let reason = "the partition was taken over before its items were";
                self.note_loss(modules, id, reason);
                end_all(staged(slot), &elsewhere, true);
            }
            Change::TakeEmpty => {
                let reason = "the partition was taken over without its items";
                self.note_loss(modules, id, reason);
            }
            // What was staged of a transfer that was cancelled must not come back (R7).
            Change::DropStage if mutants::on(Mutant::KeepStage) => {}
            Change::DropStage => drop(end_all(staged(slot), &elsewhere, true)),
            Change::SetAside => {
                slot.outgoing = None;
                let vnodes = std::mem::take(&mut slot.vnodes);
                self.keep_aside(vnodes, slot, id);
            }
            Change::SetStageAside => {
                let vnodes = staged(slot);
                self.keep_aside(vnodes, slot, id);
            }
            Change::GiveUp => {
                slot.outgoing = None;
                end_all(std::mem::take(&mut slot.vnodes), &elsewhere, true);
            }
            Change::Unseal => {
                for vnode in slot.vnodes.values() {
                    vnode.tell(Control::Unseal);
                }
            }
        }
    }

    /// Vnodes of a partition that serve.
    pub fn vnodes(&self, partition: PartitionId) -> Vec<VnodeHandle> {
        self.slot(partition).map(|slot| slot.vnodes.values().cloned().collect()).unwrap_or_default()
    }

    /// Brings every vnode of a module over to `behaviour`, all partitions at once; answers
    /// what it did to each, or why one stays as it is.
    pub async fn swap(
        &self,
        module: ModuleUid,
        behaviour: &Arc<Behaviour>,
    ) -> Vec<(PartitionId, Result<SwapReport, String>)> {
        let mut waiting = Vec::new();
        for slot in &self.inner.slots {
            let slot = slot.lock();
            let staged = slot.staging.as_ref().and_then(|staging| staging.vnodes.get(&module));
            for vnode in slot.vnodes.get(&module).into_iter().chain(staged) {
                let (answer, report) = oneshot::channel();
                vnode.tell(Control::Swap(behaviour.clone(), answer));
                waiting.push((vnode.partition, report));
            }
        }
        let mut reports = Vec::with_capacity(waiting.len());
        for (partition, report) in waiting {
            // One that ended meanwhile (moved elsewhere) runs nothing that is old.
            if let Ok(report) = report.await {
                reports.push((partition, report));
            }
        }
        reports
    }

    /// Ends every vnode in order; later commands are answered that the node stops.
    pub async fn stop(&self) {
        let error = RequestError::not_applied(ErrorCode::ShuttingDown, "the node stops");
        let mut ends = Vec::new();
        for slot in &self.inner.slots {
            let mut slot = slot.lock();
            slot.held = false;
            ends.extend(end_all(std::mem::take(&mut slot.vnodes), &error, false));
            // Several of one module, where a partition was given up more than once.
            for vnode in std::mem::take(&mut slot.aside) {
                ends.extend(end_all([(vnode.module, vnode)].into(), &error, false));
            }
            if let Some(staging) = slot.staging.take() {
                end_all(staging.vnodes, &error, true);
            }
        }
        for end in ends {
            let _ = end.await;
        }
    }

    /// Notes something that an operator should know of.
    pub fn note(&self, kind: &str, module: &str, partition: Option<u32>, reason: &str) {
        self.inner.incidents.note(kind, module, partition, reason);
    }

    /// A module was undeployed: its incidents are not remembered any more.
    pub fn forget_incidents(&self, module: &str) {
        self.inner.incidents.forget(module);
    }

    /// Incidents up to this number have been seen to: they are not remembered any more.
    pub fn acknowledge(&self, up_to: u64) {
        self.inner.incidents.acknowledge(up_to);
    }

    /// The last incidents.
    pub fn incidents(&self) -> Vec<Incident> {
        self.inner.incidents.list()
    }

    /// Tells whether anybody still has this: for whoever looks for leaks.
    pub fn remains(&self) -> Weak<dyn Any + Send + Sync> {
        let held: Arc<dyn Any + Send + Sync> = self.inner.clone();
        Arc::downgrade(&held)
    }

    /// All partitions, for those who look.
    pub fn status(&self) -> Vec<SlotStatus> {
        let one = |(id, slot): (usize, &Mutex<Slot>)| {
            let slot = slot.lock();
            SlotStatus {
                partition: PartitionId(u16::try_from(id).unwrap_or(u16::MAX)),
                held: slot.held,
                sealed: slot.sealed.is_some(),
                vnodes: slot.vnodes.len(),
                staging: slot.staging.as_ref().map_or(0, |staging| staging.vnodes.len()),
                aside: slot.aside.len(),
                traps: slot.vnodes.values().map(|vnode| vnode.gauge.traps.load(Ordering::Relaxed)).sum(),
                in_back_off: slot
                    .vnodes
                    .values()
                    .filter(|vnode| vnode.gauge.back_off_ms.load(Ordering::Relaxed) > 0)
                    .count(),
            }
        };
        self.inner.slots.iter().enumerate().map(one).collect()
    }
}

fn undeployed_error() -> RequestError {
    RequestError::not_applied(ErrorCode::UnknownModule, "the module was undeployed")
}

fn end_all(
    vnodes: BTreeMap<ModuleUid, VnodeHandle>,
    error: &RequestError,
    delete: bool,
) -> Vec<oneshot::Receiver<()>> {
    let mut ends = Vec::with_capacity(vnodes.len());
    for vnode in vnodes.into_values() {
        let (done, ended) = oneshot::channel();
        vnode.tell(Control::End { error: error.clone(), delete, done });
        ends.push(ended);
    }
    ends
}

#[cfg(test)]
mod tests;
