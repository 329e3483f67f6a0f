//! What this node knows of one partition: does it hold it, is it sealed, which vnodes run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::mailbox::{Outgoing, VnodeHandle};

/// One partition on this node. Its lock is held for a few loads and a `try_send`, never over
/// an await.
#[derive(Default)]
pub(super) struct Slot {
    /// Version of the partition as this node has applied it.
    pub(super) version: u64,
    /// Log index of the state that it was last brought to, and the transfer that is pending there.
    pub(super) applied: (u64, Option<TransferId>),
    /// Is this node its owner at that version?
    pub(super) held: bool,
    /// Sealed for this transfer: no vnode may start, those that run answer nothing (R1).
    pub(super) sealed: Option<TransferId>,
    /// The number of the last seal, for a vnode that starts behind it.
    pub(super) seal_round: u64,
    /// The handoff that takes the items away, told of every vnode that starts meanwhile.
    pub(super) outgoing: Option<(TransferId, Outgoing)>,
    /// Vnodes that serve.
    pub(super) vnodes: BTreeMap<ModuleUid, VnodeHandle>,
    /// What comes in for a change of ownership, apart from what serves (R7).
    pub(super) staging: Option<Staging>,
    /// Vnodes that serve nothing and keep the items that a recovery did not know of (R19).
    pub(super) aside: Vec<VnodeHandle>,
}

impl Slot {
    /// Has the log ended this transfer, as far as the slot has followed it? Its id is the index that made it.
    pub(super) fn is_over(&self, transfer: TransferId) -> bool {
        let (index, pending) = self.applied;
        transfer.0 <= index && pending != Some(transfer)
    }

    /// Are the vnodes' writes and pages told to this transfer?
    pub(super) fn tells(&self, transfer: TransferId) -> bool {
        let any = mutants::on(Mutant::ReadForAnotherTransfer);
        self.outgoing.as_ref().is_some_and(|(of, _)| *of == transfer || any)
    }
}

/// Vnodes that take in a transfer and serve nothing yet.
pub(super) struct Staging {
    pub(super) transfer: TransferId,
    /// Counts the stages of one transfer.
    pub(super) generation: u64,
    /// Everything has arrived and was merged: the end mark was answered.
    pub(super) complete: bool,
    pub(super) vnodes: BTreeMap<ModuleUid, VnodeHandle>,
}

/// Names a stage: who fills one that was dropped must not go on with the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageId {
    /// Of which partition.
    pub partition: PartitionId,
    /// By which transfer.
    pub transfer: TransferId,
    /// The receiver's count of its stages.
    pub generation: u64,
}

impl Staging {
    pub(super) fn is(&self, id: StageId) -> bool {
        let any = mutants::on(Mutant::FillTheNextStage);
        self.transfer == id.transfer && (self.generation == id.generation || any)
    }
}

/// A slot, for those who look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// The partition.
    pub partition: PartitionId,
    /// Is this node its owner?
    pub held: bool,
    /// Does it answer nothing because it is about to be given away?
    pub sealed: bool,
    /// How many vnodes run.
    pub vnodes: usize,
    /// How many vnodes take in a transfer.
    pub staging: usize,
    /// How many vnodes serve nothing and keep what a recovery gave away.
    pub aside: usize,
    /// Traps of its vnodes since they started.
    pub traps: u64,
    /// Vnodes in back-off.
    pub in_back_off: usize,
}

/// Something that an operator should know of, told of so many partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Counts up within a run of the node, each time that it is told.
    pub number: u64,
    /// When it was told last, in milliseconds since 1970.
    pub at_ms: u64,
    /// How often it was told.
    pub times: u64,
    /// Stable name: `possible-loss`, ...
    pub kind: String,
    /// The module's name.
    pub module: String,
    /// The partitions, if it is about some.
    pub partitions: BTreeSet<u32>,
    /// For people.
    pub reason: String,
}

/// How many incidents are remembered. What is the same of many partitions is one, so that none of them
/// drops out because they are many.
const REMEMBERED: usize = 256;

/// The last incidents of this node.
#[derive(Default)]
pub(super) struct Incidents {
    last: Mutex<VecDeque<Incident>>,
    /// Number of the newest.
    newest: AtomicU64,
}

impl Incidents {
    pub(super) fn possible_loss(&self, module: &str, uid: ModuleUid, partition: u32, reason: &str) {
        tracing::warn!(module, %uid, partition, reason, "possible loss: items kept in memory are gone");
        self.note("possible-loss", module, Some(partition), reason);
    }

    pub(super) fn note(&self, kind: &str, module: &str, partition: Option<u32>, reason: &str) {
        let at_ms = annulus_ground::wall_ms();
        let mut last = self.last.lock();
        let same = |told: &Incident| {
            (told.kind.as_str(), told.module.as_str(), told.reason.as_str()) == (kind, module, reason)
        };
        let told = last.iter().position(same).and_then(|at| last.remove(at));
        if last.len() == REMEMBERED {
            last.pop_front();
        }
        let (times, mut partitions) =
            told.map_or_else(Default::default, |told| (told.times, told.partitions));
        partitions.extend(partition);
        let (kind, module, reason) = (kind.to_owned(), module.to_owned(), reason.to_owned());
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        last.push_back(Incident { number, at_ms, times: times + 1, kind, module, partitions, reason });
    }

    /// Forgets those up to a number: somebody has seen to them.
    pub(super) fn acknowledge(&self, up_to: u64) {
        self.last.lock().retain(|incident| incident.number > up_to);
    }

    /// Forgets what was told of a module: it is gone, and another one may get its name.
    pub(super) fn forget(&self, module: &str) {
        self.last.lock().retain(|incident| incident.module != module);
    }

    pub(super) fn list(&self) -> Vec<Incident> {
        self.last.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_more_partitions_than_are_remembered_is_told_of_all_of_them() {
        let incidents = Incidents::default();
        incidents.note("possible-loss", "kv", None, "restarted");
        for partition in 0..1024 {
            incidents.note("possible-loss", "kv", Some(partition), "taken over");
        }
        let told = incidents.list();
        assert_eq!(told.iter().map(|incident| incident.times).collect::<Vec<_>>(), [1, 1024]);
        assert!(told[1].partitions.iter().copied().eq(0..1024));
        // What was told again after somebody looked was not seen to.
        incidents.note("possible-loss", "kv", None, "restarted");
        incidents.acknowledge(told[1].number);
        assert_eq!(incidents.list().len(), 1);
        for reason in 0..300 {
            incidents.note("contract-broken", "kv", Some(1), &reason.to_string());
        }
        assert_eq!(incidents.list().len(), REMEMBERED);
    }
}
