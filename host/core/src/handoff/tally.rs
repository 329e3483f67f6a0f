//! What has gone over a stream, to be compared at its end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::ModuleUid;
use crate::item::{Item, RangeDigest};

/// Of one module: every item sent, a key's later versions each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub items: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Which.
    pub digest: RangeDigest,
}

/// By module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tallies(pub BTreeMap<ModuleUid, Tally>);

impl Tallies {
    /// Counts items of a module.
    pub fn add(&mut self, module: ModuleUid, items: &[Item]) {
        let tally = self.0.entry(module).or_default();
        for item in items {
            tally.items += 1;
            tally.bytes += item.len() as u64;
            tally.digest.add(item);
        }
    }

    /// Items of all modules, and their bytes.
    pub fn total(&self) -> (u64, u64) {
        self.0.values().fold((0, 0), |(items, bytes), tally| (items + tally.items, bytes + tally.bytes))
    }
}
