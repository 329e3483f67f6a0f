//! A set of numbers and a counter under each key, in host storage. Two versions of a key are merged: the set is the
//! union, and the counter has a sum for each actor. With the feature `newest-wins` one of the two versions is dropped.
use std::collections::{BTreeMap, BTreeSet};

use annulus_guest::prelude::*;

#[derive(Default)]
struct Replicated;

#[derive(Commands)]
enum Command {
    /// Add a number to the set of a key.
    #[command(write, reply = "text")]
    Add { key: String, id: u64 },
    /// Add an amount to the counter of a key.
    #[command(write, reply = "text")]
    Increment { key: String, by: u64 },
    /// Return the set and the counter of a key.
    Read { key: String },
    /// Return the bytes of a key's item, or null.
    Stored { key: String },
}

/// The set and the counter of one key.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    ids: BTreeSet<u64>,
    /// By actor: the counter of its last write, and the sum of all its writes.
    sums: BTreeMap<u64, (u64, u64)>,
}

impl Entry {
    fn increment(&mut self, by: u64) {
        // All writes of an actor pass one store, in order, so the sum under its last dot has all of them.
        let Dot { actor, counter } = host::next_dot();
        let sum = self.sums.get(&actor).map_or(0, |(_, sum)| *sum);
        self.sums.insert(actor, (counter, sum.saturating_add(by)));
    }

    fn total(&self) -> u64 {
        self.sums.values().fold(0, |total, (_, sum)| total.saturating_add(*sum))
    }
}

/// Bytes of a number, and of an actor with its counter and its sum.
const ID_BYTES: usize = 8;
const SUM_BYTES: usize = 24;

impl State for Entry {
    /// Format 1: the number of ids, the ids, then actor, counter and sum of each actor; all of 8 bytes, big-endian.
    fn write(&self, _format: u32, bytes: &mut Vec<u8>) {
        let mut put = |number: u64| bytes.extend_from_slice(&number.to_be_bytes());
        put(self.ids.len() as u64);
        self.ids.iter().for_each(|id| put(*id));
        for (actor, (counter, sum)) in &self.sums {
            [*actor, *counter, *sum].into_iter().for_each(&mut put);
        }
    }

    fn read(_format: u32, bytes: &[u8]) -> Result<Self, String> {
        let truncated = || "the item is truncated".to_owned();
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let (count, rest) = bytes.split_at_checked(ID_BYTES).ok_or_else(truncated)?;
        let ids = usize::try_from(number(count)).ok().and_then(|count| count.checked_mul(ID_BYTES));
        let (ids, sums) = ids.and_then(|bytes| rest.split_at_checked(bytes)).ok_or_else(truncated)?;
        if sums.len() % SUM_BYTES != 0 {
            return Err(truncated());
        }
        let sum = |bytes: &[u8]| (number(&bytes[..8]), (number(&bytes[8..16]), number(&bytes[16..])));
        Ok(Self {
            ids: ids.chunks_exact(ID_BYTES).map(number).collect(),
            sums: sums.chunks_exact(SUM_BYTES).map(sum).collect(),
        })
    }

    fn merge(mut self, other: Self) -> Self {
        self.ids.extend(other.ids);
        for (actor, theirs) in other.sums {
            let ours = self.sums.entry(actor).or_default();
            *ours = theirs.max(*ours);
        }
        self
    }
}

#[cfg(not(feature = "newest-wins"))]
mod kept {
    use super::*;

    pub type Kept = Entry;

    /// Change the entry of a key.
    pub fn change(key: &str, change: impl FnOnce(&mut Entry)) {
        let mut entry = load(key);
        change(&mut entry);
        storage::store(key, &entry);
    }

    pub fn load(key: &str) -> Entry {
        storage::load(key).unwrap_or_default()
    }
}

#[cfg(feature = "newest-wins")]
mod kept {
    use super::*;

    /// The parts of an entry, as one value.
    pub type Kept = Latest<(BTreeSet<u64>, BTreeMap<u64, (u64, u64)>)>;

    /// Change the entry of a key.
    pub fn change(key: &str, change: impl FnOnce(&mut Entry)) {
        let before: Option<Kept> = storage::load(key);
        let mut entry = load(key);
        change(&mut entry);
        storage::store(key, &Kept::after(before.as_ref(), Some((entry.ids, entry.sums))));
    }

    pub fn load(key: &str) -> Entry {
        let (ids, sums) = storage::load::<Kept>(key).and_then(Kept::get).unwrap_or_default();
        Entry { ids, sums }
    }
}

impl Vnode for Replicated {
    type Command = Command;

    fn handle_command(&mut self, command: Command) -> Result<Reply, Failure> {
        match command {
            Command::Add { key, id } => {
                kept::change(&key, |entry| entry.ids.extend([id]));
                reply("ok")
            }
            Command::Increment { key, by } => {
                kept::change(&key, |entry| entry.increment(by));
                reply("ok")
            }
            Command::Read { key } => {
                let entry = kept::load(&key);
                reply((&entry.ids, entry.total()))
            }
            Command::Stored { key } => {
                reply(storage::get(key.as_bytes(), b"").map(|version| ByteBuf::from(version.value)))
            }
        }
    }
}

impl Merge for Replicated {
    type State = kept::Kept;
}

export!(Replicated: Merge);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use annulus_guest::testing::{Tester, laws};

    fn entry(ids: &[u64], sums: &[(u64, u64, u64)]) -> Entry {
        let sums = sums.iter().map(|&(actor, counter, sum)| (actor, (counter, sum))).collect();
        Entry { ids: ids.iter().copied().collect(), sums }
    }

    #[test]
    fn entries_obey_the_laws() {
        laws(&[
            Entry::default(),
            entry(&[1, 2], &[(7, 1, 5)]),
            entry(&[2, 3], &[(7, 2, 9), (8, 1, 1)]),
            entry(&[u64::MAX], &[(8, 4, 3)]),
        ]);
    }

    #[test]
    fn a_truncated_item_is_refused() {
        let mut bytes = Vec::new();
        entry(&[1, 2], &[(7, 1, 5)]).write(1, &mut bytes);
        assert!((0..bytes.len()).filter(|cut| *cut != 24).all(|cut| Entry::read(1, &bytes[..cut]).is_err()));
    }

    fn read(at: &Tester<Replicated>) -> Value {
        at.call("read", &["k".into()]).unwrap()
    }

    #[test]
    #[cfg(not(feature = "newest-wins"))]
    fn writes_of_two_replicas_are_kept() {
        let (one, other) = (Tester::<Replicated>::start(), Tester::<Replicated>::start());
        one.call("add", &["k".into(), 1.into()]).unwrap();
        other.call("add", &["k".into(), 2.into()]).unwrap();
        one.call("increment", &["k".into(), 3.into()]).unwrap();
        assert!(one.receive_stored(other.stored()).is_empty());
        assert!(other.receive_stored(one.stored()).is_empty());
        assert_eq!(one.stored(), other.stored());
        assert_eq!(read(&one), Value::Array(vec![Value::Array(vec![1.into(), 2.into()]), 3.into()]));
        let stored = one.call("stored", &["k".into()]).unwrap();
        assert_eq!(stored, Value::Bytes(one.stored()[0].value.clone()));
        assert_eq!(one.call("stored", &["none".into()]).unwrap(), Value::Null);
    }

    #[test]
    #[cfg(feature = "newest-wins")]
    fn the_write_of_one_of_two_replicas_is_dropped() {
        let (one, other) = (Tester::<Replicated>::start(), Tester::<Replicated>::start());
        one.call("add", &["k".into(), 1.into()]).unwrap();
        other.call("add", &["k".into(), 2.into()]).unwrap();
        assert!(one.receive_stored(other.stored()).is_empty());
        assert!(other.receive_stored(one.stored()).is_empty());
        assert_eq!((read(&one), one.stored()), (read(&other), other.stored()));
    }
}
