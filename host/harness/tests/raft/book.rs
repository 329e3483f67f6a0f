//! The promises of a Raft log, and a check that the disk keeps them.

use std::collections::{BTreeMap, BTreeSet};

use annulus_cluster::storage::{Entry, LogId, StateSink, Vote};
use annulus_core::ids::{Digest, NodeUid};
use annulus_core::state::{ClusterState, Command, Machine};
use openraft::testing::log_id;
use openraft::{EntryPayload, Membership};
use parking_lot::Mutex;

use crate::founding::found;

/// The newest state that the state machine reported.
#[derive(Default)]
pub struct State(pub Mutex<Option<ClusterState>>);

impl StateSink for State {
    fn committed(&self, state: &ClusterState) {
        *self.0.lock() = Some(state.clone());
    }
}

/// The contents of a disk at the start of a process.
pub struct Found {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    pub snapshot: Option<LogId>,
    pub entries: Vec<Entry>,
    pub applied: Option<LogId>,
    pub state: Option<ClusterState>,
}

/// A record of the writes of a node's Raft, and of their acknowledgements.
#[derive(Default)]
pub struct Book {
    /// The newest acknowledged vote, and the newest vote whose write has started.
    pub vote: (Option<Vote>, Option<Vote>),
    /// The log from its start, as the process has it: without truncated entries, but with purged ones.
    pub log: BTreeMap<u64, Entry>,
    /// Index up to which appends were acknowledged.
    pub acked: Option<u64>,
    /// Every entry ever written, by index.
    pub written: BTreeSet<(u64, LogId)>,
    pub committed: Option<u64>,
    /// Last entry of the newest acknowledged snapshot.
    pub snapshot: Option<LogId>,
}

/// Return the entry with this id. Its payload depends only on the id.
pub fn entry(id: LogId) -> Entry {
    let payload = match id.index {
        0 => EntryPayload::Membership(Membership::new(vec![BTreeSet::from([1])], ())),
        1 => EntryPayload::Normal(found(NodeUid([1; 16]), "ca".into())),
        index if index % 5 == 0 => EntryPayload::Blank,
        index => {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&index.to_be_bytes());
            token[8..16].copy_from_slice(&id.leader_id.term.to_be_bytes());
            let (now_ms, expires_ms) = (index, index + 5);
            EntryPayload::Normal(Command::IssueToken { token: Digest(token), now_ms, expires_ms, uses: None })
        }
    };
    Entry { log_id: id, payload }
}

/// Return the state after the entries up to an index.
pub fn machine_of(log: &BTreeMap<u64, Entry>, upto: u64) -> Machine {
    let mut machine = Machine::default();
    for (index, entry) in log.range(..=upto) {
        if let EntryPayload::Normal(command) = &entry.payload {
            machine.apply(*index, command);
        }
    }
    machine
}

fn index(id: Option<LogId>) -> Option<u64> {
    id.map(|id| id.index)
}

impl Book {
    pub fn last(&self) -> Option<LogId> {
        self.log.last_key_value().map(|(_, entry)| entry.log_id)
    }

    pub fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    /// Record entries that are about to be written.
    pub fn write(&mut self, ids: impl IntoIterator<Item = LogId>) {
        for id in ids {
            self.log.insert(id.index, entry(id));
            self.written.insert((id.index, id));
        }
    }

    /// Record that entries were acknowledged, unless they have been truncated since.
    pub fn ack(&mut self, last: LogId) {
        if self.log.get(&last.index).is_some_and(|entry| entry.log_id == last) {
            self.acked = self.acked.max(Some(last.index));
        }
    }

    /// Record that the log is about to be truncated.
    pub fn cut(&mut self, since: u64) {
        self.log.split_off(&since);
        self.acked = self.acked.min(since.checked_sub(1));
    }

    /// Check the promises against the contents that a start finds. The contents then become the new promises,
    /// because Raft has read them.
    pub fn check(&mut self, found: Found) -> Result<(), String> {
        let (promised, begun) = self.vote;
        if found.vote < promised || found.vote > begun {
            return Err(format!("vote {:?} instead of {promised:?} to {begun:?}", found.vote));
        }
        if found.snapshot < self.snapshot {
            return Err(format!("the snapshot {:?} instead of {:?}", found.snapshot, self.snapshot));
        }
        if found.purged > found.snapshot {
            return Err(format!("purged up to {:?}, and the snapshot is {:?}", found.purged, found.snapshot));
        }
        let last = found.last.max(found.snapshot);
        if index(last) < self.acked {
            return Err(format!("the log ends at {last:?}, but {:?} was acknowledged", self.acked));
        }
        let first = found.purged.map_or(0, |purged| purged.index + 1);
        let kept = found.entries.iter().filter(|entry| entry.log_id.index >= first);
        let mut expected = first;
        for entry in kept.clone() {
            let id = entry.log_id;
            if id.index != expected {
                return Err(format!("entry {} where {expected} should be", id.index));
            }
            expected += 1;
            let is_promised = self.acked >= Some(id.index);
            let same = self.log.get(&id.index).is_some_and(|entry| entry.log_id == id);
            if is_promised && !same || !self.written.contains(&(id.index, id)) {
                return Err(format!("entry {id} must not be present"));
            }
        }
        if Some(expected) != found.last.map(|last| last.index + 1) && found.last != found.purged {
            return Err(format!("entries end before {expected}, the log at {:?}", found.last));
        }
        // Truncated entries may be present again, as long as no other entries were written after them.
        for entry in kept {
            self.log.insert(entry.log_id.index, entry.clone());
        }
        self.log.split_off(&last.map_or(0, |last| last.index + 1));
        let state = found.applied.and_then(|applied| machine_of(&self.log, applied.index).state);
        if found.state != state {
            return Err(format!("the state at {:?} differs", found.applied));
        }
        self.vote = (found.vote, found.vote);
        self.acked = index(last);
        self.committed = index(found.applied);
        self.snapshot = found.snapshot;
        self.written = self.log.values().map(|entry| (entry.log_id.index, entry.log_id)).collect();
        Ok(())
    }

    /// Return the ids of the next `count` entries under a leader of this term.
    pub fn ids(&self, term: u64, count: u64) -> Vec<LogId> {
        let next = self.next();
        (next..next + count).map(|index| log_id(term, 1, index)).collect()
    }
}
