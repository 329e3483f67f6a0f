//! Storage in the memory of this process.

use std::collections::BTreeMap;
use std::ops::Bound;

use annulus_core::item::{ItemAddr, Version};

use super::Storage;

/// Items that end with the process.
#[derive(Default)]
pub struct Memory {
    items: BTreeMap<ItemAddr, Version>,
    bytes: usize,
}

fn size(addr: &ItemAddr, version: &Version) -> usize {
    addr.key.len() + addr.sort.len() + version.value.len()
}

impl Storage for Memory {
    fn get(&self, addr: &ItemAddr) -> Option<Version> {
        self.items.get(addr).cloned()
    }

    fn range(
        &self,
        from: Bound<ItemAddr>,
        to: Bound<ItemAddr>,
    ) -> Box<dyn DoubleEndedIterator<Item = (ItemAddr, Version)> + '_> {
        // `BTreeMap::range` panics on a range that ends before it starts; here such a range is empty.
        if let (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) =
            (&from, &to)
            && a >= b
        {
            let same = a == b && matches!((&from, &to), (Bound::Included(_), Bound::Included(_)));
            if !same {
                return Box::new(std::iter::empty());
            }
        }
        Box::new(self.items.range((from, to)).map(|(addr, version)| (addr.clone(), version.clone())))
    }

    fn apply(&mut self, changes: Vec<(ItemAddr, Option<Version>)>) {
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

    fn len(&self) -> usize {
        self.items.len()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}
