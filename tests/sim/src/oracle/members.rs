//! The oracle of a module with several replicas: a read finds every member of a set that was acknowledged before it began,
//! and none that was refused (section 7 of the rules).
//!
//! Replicas survive the loss of one store. Another loss before all stores are complete again may take what was
//! acknowledged, and so may a recovery of the cluster, whose survivors may not know of the newest sets of nodes.

use std::collections::BTreeSet;

use annulus_core::request::{AppliedState, RequestError};
use annulus_core::state::StorageKind;

use crate::rule::{Broken, Rule};

/// The outcome of a request that adds a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The member must be found from now on.
    Acknowledged,
    /// The member must not be found.
    Refused,
    /// The member may be found, now or later.
    Unknown,
}

impl Added {
    /// Return the outcome of a request that failed.
    pub fn of(error: &RequestError) -> Self {
        if error.state == AppliedState::NotApplied { Self::Refused } else { Self::Unknown }
    }
}

/// The members of all sets of a run.
#[derive(Clone, Debug)]
pub struct Members {
    storage: StorageKind,
    acknowledged: BTreeSet<(u64, u64)>,
    refused: BTreeSet<(u64, u64)>,
    /// True if a store may lack items that were acknowledged: another loss may be that of the last copy.
    weak: bool,
    /// Counts losses after which nothing that was acknowledged before must be found.
    forgiven: u64,
}

impl Members {
    /// Create the oracle of a module whose items are there.
    pub fn new(storage: StorageKind) -> Self {
        Self { storage, acknowledged: BTreeSet::new(), refused: BTreeSet::new(), weak: true, forgiven: 0 }
    }

    /// Return the place of the items.
    pub fn storage(&self) -> StorageKind {
        self.storage
    }

    /// Return the number of times that all acknowledged members may have been lost.
    pub fn times_forgiven(&self) -> u64 {
        self.forgiven
    }

    /// Record the outcome of a request.
    pub fn added(&mut self, set: u64, member: u64, added: Added) {
        match added {
            Added::Acknowledged => drop(self.acknowledged.insert((set, member))),
            Added::Refused => drop(self.refused.insert((set, member))),
            Added::Unknown => {}
        }
    }

    /// Return the acknowledged members of a set.
    pub fn acknowledged(&self, set: u64) -> BTreeSet<u64> {
        self.acknowledged.range((set, 0)..=(set, u64::MAX)).map(|(_, member)| *member).collect()
    }

    /// Check what a read has found. `before` was acknowledged before it began.
    ///
    /// # Errors
    /// A member is missing, or was refused.
    pub fn found(&self, set: u64, before: &BTreeSet<u64>, found: &BTreeSet<u64>) -> Result<(), Broken> {
        // What was forgiven in the meantime is acknowledged no more.
        let mut must = before.iter().filter(|member| self.acknowledged.contains(&(set, **member)));
        if let Some(member) = must.find(|member| !found.contains(member)) {
            return Err(Rule::LostWrite.broken(format!("a read of s{set} misses {member}: {found:?}")));
        }
        match found.iter().find(|member| self.refused.contains(&(set, **member))) {
            Some(member) => {
                Err(Rule::AnswerTells.broken(format!("{member} of s{set} was refused, and is found")))
            }
            None => Ok(()),
        }
    }

    /// Record that every store is complete and has caught up with the others.
    pub fn whole(&mut self) {
        self.weak = false;
    }

    /// Record the loss of a node's memory.
    pub fn loses_memory(&mut self) {
        if self.storage == StorageKind::Memory {
            self.loses_store();
        }
    }

    /// Record the loss of a node's stores.
    pub fn loses_store(&mut self) {
        if std::mem::replace(&mut self.weak, true) {
            self.forgive();
        }
    }

    /// Record that what was acknowledged may be lost.
    pub fn forgive(&mut self) {
        self.weak = true;
        self.forgiven += u64::from(!self.acknowledged.is_empty());
        self.acknowledged.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(members: &[u64]) -> BTreeSet<u64> {
        members.iter().copied().collect()
    }

    #[test]
    fn a_member_is_missed_until_it_is_forgiven_and_a_refused_one_is_never_found() {
        let mut members = Members::new(StorageKind::Memory);
        members.added(1, 5, Added::Acknowledged);
        members.added(1, 6, Added::Unknown);
        members.added(1, 7, Added::Refused);
        members.added(2, 8, Added::Acknowledged);
        let before = members.acknowledged(1);
        assert_eq!(before, of(&[5]));
        let found = |members: &Members, found: &[u64]| {
            members.found(1, &before, &of(found)).map_err(|broken| broken.rule)
        };
        assert_eq!((found(&members, &[5]), found(&members, &[5, 6])), (Ok(()), Ok(())));
        assert_eq!(found(&members, &[6]), Err(Rule::LostWrite));
        assert_eq!(found(&members, &[5, 7]), Err(Rule::AnswerTells));
        members.whole();
        members.loses_memory();
        assert_eq!(found(&members, &[6]), Err(Rule::LostWrite), "the other replicas have it");
        members.loses_memory();
        assert_eq!((found(&members, &[6]), members.times_forgiven()), (Ok(()), 1));
        assert_eq!(found(&members, &[7]), Err(Rule::AnswerTells));
    }

    #[test]
    fn a_crash_loses_nothing_that_is_on_disk() {
        let mut members = Members::new(StorageKind::Durable);
        members.added(1, 5, Added::Acknowledged);
        members.loses_memory();
        assert_eq!((members.acknowledged(1), members.times_forgiven()), (of(&[5]), 0));
        members.loses_store();
        assert_eq!(
            (members.acknowledged(1), members.times_forgiven()),
            (of(&[]), 1),
            "nothing was whole yet"
        );
    }
}
