//! Tallies of the items of a stream, compared at its end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::ModuleUid;
use crate::item::{Item, RangeDigest};

/// The items of one module in a stream, counting each version of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// The number of items.
    pub items: u64,
    /// The bytes of their keys, sort keys and values.
    pub bytes: u64,
    /// The digest of the set of items.
    pub digest: RangeDigest,
}

impl Tally {
    /// Return the tally of these items.
    pub fn of<'a>(items: impl IntoIterator<Item = &'a Item>) -> Self {
        let mut tally = Self::default();
        items.into_iter().for_each(|item| tally.add(item));
        tally
    }

    /// Count an item.
    pub fn add(&mut self, item: &Item) {
        self.items += 1;
        self.bytes += item.len() as u64;
        self.digest.add(item);
    }
}

/// Tallies by module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tallies(pub BTreeMap<ModuleUid, Tally>);

impl Tallies {
    /// Count items of a module.
    pub fn add(&mut self, module: ModuleUid, items: &[Item]) {
        let tally = self.0.entry(module).or_default();
        items.iter().for_each(|item| tally.add(item));
    }

    /// Add other tallies.
    pub fn add_all(&mut self, others: &Tallies) {
        for (module, other) in &others.0 {
            let tally = self.0.entry(*module).or_default();
            tally.items += other.items;
            tally.bytes += other.bytes;
            tally.digest.add_all(&other.digest);
        }
    }

    /// Return true if these are the tallies of the same items. A module without items counts as absent.
    pub fn same(&self, other: &Tallies) -> bool {
        let some = |tallies: &Tallies| {
            let some = tallies.0.iter().filter(|(_, tally)| tally.items > 0);
            some.map(|(module, tally)| (*module, *tally)).collect::<Vec<_>>()
        };
        some(self) == some(other)
    }

    /// Return the items and bytes of all modules.
    pub fn total(&self) -> (u64, u64) {
        self.0.values().fold((0, 0), |(items, bytes), tally| (items + tally.items, bytes + tally.bytes))
    }
}

/// Items and bytes of a stream by module, without digests: for reports of progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(pub BTreeMap<ModuleUid, (u64, u64)>);

impl Amounts {
    /// Count items of a module.
    pub fn add(&mut self, module: ModuleUid, items: &[Item]) {
        let (count, bytes) = self.0.entry(module).or_default();
        *count += items.len() as u64;
        *bytes += items.iter().map(|item| item.len() as u64).sum::<u64>();
    }

    /// Return the items of all modules and their bytes.
    pub fn total(&self) -> (u64, u64) {
        self.0.values().fold((0, 0), |(items, bytes), amount| (items + amount.0, bytes + amount.1))
    }
}
