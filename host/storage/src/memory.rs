//! Storage in the memory of this process.

use std::collections::BTreeMap;
use std::ops::Bound;

use annulus_core::item::{ItemAddr, RangeDigest, Version};

use super::items::Counts;

/// Items that end with the process.
#[derive(Debug, Default)]
pub struct Memory {
    items: BTreeMap<ItemAddr, Version>,
    bytes: u64,
}

fn size(addr: &ItemAddr, version: &Version) -> u64 {
    (addr.key.len() + addr.sort.len() + version.value.len()) as u64
}

impl Memory {
    /// Return the version at an address.
    pub fn get(&self, addr: &ItemAddr) -> Option<&Version> {
        self.items.get(addr)
    }

    /// Iterate over the items in a range, in order.
    pub fn range(
        &self,
        from: Bound<ItemAddr>,
        to: Bound<ItemAddr>,
    ) -> impl DoubleEndedIterator<Item = (&ItemAddr, &Version)> {
        // `BTreeMap::range` panics on a range that ends before it starts; here such a range is empty.
        let is_empty = match (&from, &to) {
            (Bound::Included(a), Bound::Included(b)) => a > b,
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a >= b,
            _ => false,
        };
        (!is_empty).then(|| self.items.range((from, to))).into_iter().flatten()
    }

    /// Return the digest of the items of a key, tombstones included.
    pub fn digest(&self, key: &[u8]) -> RangeDigest {
        let mut digest = RangeDigest::default();
        let first = ItemAddr { key: key.to_vec(), sort: Vec::new() };
        for (addr, version) in self.items.range(first..).take_while(|(addr, _)| addr.key == key) {
            digest.add_at(addr, version);
        }
        digest
    }

    /// Apply changes as a whole. `None` removes the item.
    pub fn apply(&mut self, changes: Vec<(ItemAddr, Option<Version>)>) {
        for (addr, change) in changes {
            if let Some(replaced) = self.items.get(&addr) {
                self.bytes -= size(&addr, replaced);
            }
            match change {
                Some(version) => {
                    self.bytes += size(&addr, &version);
                    self.items.insert(addr, version)
                }
                None => self.items.remove(&addr),
            };
        }
    }

    /// Return the number and the size of the items.
    pub fn counts(&self) -> Counts {
        Counts { items: self.items.len() as u64, bytes: self.bytes }
    }
}
