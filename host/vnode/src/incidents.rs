//! Incidents: events that an operator should know of, such as a possible loss of items.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_core::ids::ModuleUid;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// An event that an operator should know of. Events that differ only in the partition are one incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Number of the latest occurrence, increasing within a run of the node.
    pub number: u64,
    /// Time of the latest occurrence, in milliseconds since 1970.
    pub at_ms: u64,
    /// Number of occurrences.
    pub times: u64,
    /// Stable name of the kind: `possible-loss` or `contract-broken`, among others.
    pub kind: String,
    /// Name of the module.
    pub module: String,
    /// The affected partitions; empty if the incident concerns none in particular.
    pub partitions: BTreeSet<u32>,
    /// Description for people.
    pub reason: String,
}

/// Maximum number of incidents; the oldest is dropped. The same event in many partitions counts once.
const MAX_INCIDENTS: usize = 256;

/// The latest incidents of this node, oldest first.
#[derive(Default)]
pub(super) struct Incidents {
    last: Mutex<VecDeque<Incident>>,
    /// Number of the latest occurrence.
    newest: AtomicU64,
}

impl Incidents {
    /// Record, and log, the possible loss of items that a guest kept in memory.
    pub(super) fn possible_loss(&self, module: &str, uid: ModuleUid, partition: u32, reason: &str) {
        tracing::warn!(module, %uid, partition, reason, "possible loss: items kept in memory are gone");
        self.note("possible-loss", module, Some(partition), reason);
    }

    /// Record an occurrence.
    pub(super) fn note(&self, kind: &str, module: &str, partition: Option<u32>, reason: &str) {
        let at_ms = annulus_ground::wall_ms();
        let mut last = self.last.lock();
        let same = |told: &Incident| {
            (told.kind.as_str(), told.module.as_str(), told.reason.as_str()) == (kind, module, reason)
        };
        let told = last.iter().position(same).and_then(|at| last.remove(at));
        if last.len() == MAX_INCIDENTS {
            last.pop_front();
        }
        let (times, mut partitions) =
            told.map_or_else(Default::default, |told| (told.times, told.partitions));
        partitions.extend(partition);
        let (kind, module, reason) = (kind.to_owned(), module.to_owned(), reason.to_owned());
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        last.push_back(Incident { number, at_ms, times: times + 1, kind, module, partitions, reason });
    }

    /// Drop incidents up to a number: an operator has handled them.
    pub(super) fn acknowledge(&self, up_to: u64) {
        self.last.lock().retain(|incident| incident.number > up_to);
    }

    /// Drop the incidents of an undeployed module: another module may get its name.
    pub(super) fn forget(&self, module: &str) {
        self.last.lock().retain(|incident| incident.module != module);
    }

    /// Return all incidents.
    pub(super) fn list(&self) -> Vec<Incident> {
        self.last.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_incident_names_more_partitions_than_the_maximum_number_of_incidents() {
        let incidents = Incidents::default();
        incidents.note("possible-loss", "kv", None, "restarted");
        for partition in 0..1024 {
            incidents.note("possible-loss", "kv", Some(partition), "taken over");
        }
        let told = incidents.list();
        assert_eq!(told.iter().map(|incident| incident.times).collect::<Vec<_>>(), [1, 1024]);
        assert!(told[1].partitions.iter().copied().eq(0..1024));
        // An occurrence after the operator's look at the list is not acknowledged.
        incidents.note("possible-loss", "kv", None, "restarted");
        incidents.acknowledge(told[1].number);
        assert_eq!(incidents.list().len(), 1);
        for reason in 0..300 {
            incidents.note("contract-broken", "kv", Some(1), &reason.to_string());
        }
        assert_eq!(incidents.list().len(), MAX_INCIDENTS);
    }
}
