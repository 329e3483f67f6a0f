//! The writes of one module, and the judgement of what a read returns.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::client::Applied;

/// Number of ids that are added to a key before another key takes its place, so that items stay small.
const FULL: usize = 96;

/// What is known of the writes of one module.
#[derive(Debug)]
pub(crate) struct Account {
    keys: Vec<Key>,
    /// The key that is written at present, by slot.
    active: Vec<u32>,
    last_id: u64,
    wrong: Wrong,
}

/// The writes of one key.
#[derive(Clone, Debug, Default)]
struct Key {
    /// All ids. The outcome of one whose request is in progress is unknown.
    ids: HashMap<u64, Applied>,
    /// Acknowledged ids, in the order of their acknowledgement.
    acknowledged: Vec<u64>,
    /// Amounts of all increments, of those that were acknowledged, and of those that were refused.
    sum: u64,
    acknowledged_sum: u64,
    refused_sum: u64,
}

/// What was acknowledged of a key before a read began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    ids: usize,
    sum: u64,
}

/// Contradictions between reads and the account. Each id is counted once, and of each counter the largest difference.
#[derive(Clone, Debug, Default)]
struct Wrong {
    /// Acknowledged writes that a read did not see.
    missed: Missing,
    /// Acknowledged writes that a read after the end of the load did not see.
    lost: Missing,
    /// Writes that were found, and were refused or never made.
    phantom: Missing,
}

#[derive(Clone, Debug, Default)]
struct Missing {
    ids: BTreeSet<(u32, u64)>,
    sums: BTreeMap<u32, u64>,
}

/// The figures of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) keys: usize,
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) missed: u64,
    pub(crate) lost: u64,
    pub(crate) phantom: u64,
}

/// A write of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// An id for the set.
    Add(u64),
    /// An amount for the counter. It is 1 in every increment, so that sums are numbers of writes.
    Increment,
}

impl Account {
    /// Create an account in which this many keys are written at a time.
    pub(crate) fn new(slots: u32) -> Self {
        let keys = vec![Key::default(); slots as usize];
        Self { keys, active: (0..slots).collect(), last_id: 0, wrong: Wrong::default() }
    }

    /// Return the number of keys so far; they are numbered from 0.
    pub(crate) fn keys(&self) -> u32 {
        u32::try_from(self.keys.len()).unwrap_or(u32::MAX)
    }

    /// Return the key that is written at present in a slot, modulo their number.
    pub(crate) fn active(&mut self, slot: usize) -> u32 {
        let slot = slot % self.active.len();
        let key = self.active[slot];
        if self.key(key).ids.len() < FULL {
            return key;
        }
        let next = self.keys();
        self.keys.push(Key::default());
        self.active[slot] = next;
        next
    }

    /// Begin to add an id to a key. It is new in this module.
    pub(crate) fn add(&mut self, key: u32) -> Write {
        self.last_id += 1;
        let id = self.last_id;
        self.key(key).ids.insert(id, Applied::Unknown);
        Write::Add(id)
    }

    /// Begin to increment the counter of a key.
    pub(crate) fn increment(&mut self, key: u32) -> Write {
        self.key(key).sum += 1;
        Write::Increment
    }

    /// Record the outcome of a write.
    pub(crate) fn settle(&mut self, key: u32, write: Write, applied: Applied) {
        let key = self.key(key);
        match (write, applied) {
            (Write::Add(id), _) => {
                key.ids.insert(id, applied);
                if applied == Applied::Yes {
                    key.acknowledged.push(id);
                }
            }
            (Write::Increment, Applied::Yes) => key.acknowledged_sum += 1,
            (Write::Increment, Applied::No) => key.refused_sum += 1,
            (Write::Increment, Applied::Unknown) => {}
        }
    }

    /// Return what is acknowledged of a key, for a read that is about to begin.
    pub(crate) fn before(&self, key: u32) -> Before {
        let Some(key) = self.keys.get(key as usize) else { return Before { ids: 0, sum: 0 } };
        Before { ids: key.acknowledged.len(), sum: key.acknowledged_sum }
    }

    /// Judge the answer of a read. With `last`, the load has ended: what is missing now is lost.
    ///
    /// # Errors
    /// What the answer lacks, or has and should not have.
    pub(crate) fn see(
        &mut self,
        number: u32,
        before: Before,
        (ids, sum): (&BTreeSet<u64>, u64),
        last: bool,
    ) -> Result<(), String> {
        let Some(key) = self.keys.get(number as usize) else { return Ok(()) };
        let missing: Vec<u64> =
            key.acknowledged[..before.ids].iter().filter(|id| !ids.contains(id)).copied().collect();
        let made = |id: &&u64| key.ids.get(id).is_some_and(|applied| *applied != Applied::No);
        let phantom: Vec<u64> = ids.iter().filter(|id| !made(id)).copied().collect();
        let less = before.sum.saturating_sub(sum);
        let more = sum.saturating_sub(key.sum - key.refused_sum);
        let Wrong { missed, lost, phantom: phantoms } = &mut self.wrong;
        (if last { lost } else { missed }).add(number, &missing, less);
        phantoms.add(number, &phantom, more);
        let mut said = Vec::new();
        for (what, ids, sum) in [("lacks", missing, less), ("has refused", phantom, more)] {
            if !ids.is_empty() {
                said.push(format!("{what} ids {ids:?}"));
            }
            if sum > 0 {
                said.push(format!("{what} {sum} of the counter"));
            }
        }
        let found = format!("of {} ids and {sum} of the counter that it has", ids.len());
        if said.is_empty() { Ok(()) } else { Err(format!("{}, {found}", said.join(", "))) }
    }

    /// Return the figures so far. The outcome of writes in progress counts as unknown.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals {
            keys: self.keys.len(),
            missed: self.wrong.missed.count(),
            lost: self.wrong.lost.count(),
            phantom: self.wrong.phantom.count(),
            ..Totals::default()
        };
        for key in &self.keys {
            let refused = key.ids.values().filter(|applied| **applied == Applied::No).count() as u64;
            let acknowledged = key.acknowledged.len() as u64;
            totals.acknowledged += acknowledged + key.acknowledged_sum;
            totals.refused += refused + key.refused_sum;
            totals.unknown += key.ids.len() as u64 - acknowledged - refused;
            totals.unknown += key.sum - key.acknowledged_sum - key.refused_sum;
        }
        totals
    }

    fn key(&mut self, key: u32) -> &mut Key {
        &mut self.keys[key as usize]
    }
}

impl Missing {
    fn add(&mut self, key: u32, ids: &[u64], sum: u64) {
        self.ids.extend(ids.iter().map(|id| (key, *id)));
        if sum > 0 {
            let most = self.sums.entry(key).or_default();
            *most = sum.max(*most);
        }
    }

    fn count(&self) -> u64 {
        self.ids.len() as u64 + self.sums.values().sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sees(account: &mut Account, before: Before, ids: &[u64], sum: u64, last: bool) -> [u64; 3] {
        let right = account.see(0, before, (&ids.iter().copied().collect(), sum), last).is_ok();
        let Totals { missed, lost, phantom, .. } = account.totals();
        assert_eq!(right, missed + lost + phantom == 0);
        [missed, lost, phantom]
    }

    /// Return an account with an id and an increment of each outcome: acknowledged (id 1), refused (2), unknown (3).
    fn account() -> Account {
        let mut account = Account::new(1);
        for applied in [Applied::Yes, Applied::No, Applied::Unknown] {
            for write in [account.add(0), account.increment(0)] {
                account.settle(0, write, applied);
            }
        }
        account
    }

    #[test]
    fn acknowledged_writes_must_be_found_and_unknown_ones_may_be() {
        for (ids, sum) in [(&[1][..], 1), (&[1, 3], 2)] {
            let mut account = account();
            let before = account.before(0);
            assert_eq!(sees(&mut account, before, ids, sum, true), [0; 3]);
        }
        let mut account = account();
        let before = account.before(0);
        assert_eq!(sees(&mut account, before, &[3], 1, false), [1, 0, 0]);
        assert_eq!(sees(&mut account, before, &[], 0, false), [2, 0, 0]);
        assert_eq!(sees(&mut account, before, &[], 0, true), [2, 2, 0]);
        assert_eq!(sees(&mut account, before, &[], 0, true), [2, 2, 0], "each write is counted once");
    }

    #[test]
    fn refused_and_invented_writes_are_phantoms() {
        for (ids, sum) in [(&[1, 2][..], 2), (&[1, 9], 1), (&[1], 3)] {
            let mut account = account();
            let before = account.before(0);
            assert_eq!(sees(&mut account, before, ids, sum, false), [0, 0, 1], "{ids:?}, {sum}");
        }
    }

    #[test]
    fn a_read_need_not_see_what_was_acknowledged_after_it_began() {
        let mut account = account();
        let before = account.before(0);
        for write in [account.add(0), account.increment(0)] {
            account.settle(0, write, Applied::Yes);
        }
        assert_eq!(sees(&mut account, before, &[1], 1, false), [0; 3]);
        let before = account.before(0);
        assert_eq!(sees(&mut account, before, &[1], 1, false), [2, 0, 0]);
    }

    #[test]
    fn writes_in_progress_count_as_unknown_and_a_full_key_is_replaced() {
        let mut account = Account::new(2);
        for _ in 0..FULL {
            assert_eq!(account.active(1), 1);
            account.add(1);
        }
        assert_eq!((account.active(1), account.active(0), account.keys()), (2, 0, 3));
        assert_eq!(account.totals(), Totals { keys: 3, unknown: FULL as u64, ..Totals::default() });
    }
}
