//! The writes of one call, as an overlay of the storage that the call reads.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

use annulus_core::item::{Item, ItemAddr, Version};

/// The writes of one call: visible to the reads of the call, not applied to the storage yet.
#[derive(Debug, Default)]
pub struct Batch {
    writes: BTreeMap<ItemAddr, Version>,
    bytes: usize,
}

impl Batch {
    /// Write an item. The last write to an address wins.
    pub fn put(&mut self, addr: ItemAddr, version: Version) {
        self.bytes += addr.key.len() + addr.sort.len() + version.value.len();
        self.writes.insert(addr, version);
    }

    /// Return the number of bytes written so far; overwritten items count too.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Return true if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Return the version that the call has written at an address.
    pub fn get(&self, addr: &ItemAddr) -> Option<&Version> {
        self.writes.get(addr)
    }

    /// Iterate over the items that the call sees in a range, in order or in reverse. `below` are the items of the
    /// storage in this range, in order.
    pub(super) fn scan<'a>(
        &'a self,
        below: impl DoubleEndedIterator<Item = (&'a ItemAddr, &'a Version)> + 'a,
        from: Bound<ItemAddr>,
        to: Bound<ItemAddr>,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = (ItemAddr, Version)> + 'a> {
        let owned = |(addr, version): (&ItemAddr, &Version)| (addr.clone(), version.clone());
        let (above, below) = (
            self.writes.iter().filter(move |(addr, _)| within(addr, &from, &to)).map(owned),
            below.map(owned),
        );
        if reverse {
            Box::new(Overlaid { above: above.rev().peekable(), below: below.rev().peekable(), reverse })
        } else {
            Box::new(Overlaid { above: above.peekable(), below: below.peekable(), reverse })
        }
    }

    /// Return the writes, ordered by address.
    pub fn into_items(self) -> impl Iterator<Item = Item> {
        self.writes.into_iter().map(|(addr, version)| Item::new(addr, version))
    }
}

fn within(addr: &ItemAddr, from: &Bound<ItemAddr>, to: &Bound<ItemAddr>) -> bool {
    let after = match from {
        Bound::Included(from) => addr >= from,
        Bound::Excluded(from) => addr > from,
        Bound::Unbounded => true,
    };
    let before = match to {
        Bound::Included(to) => addr <= to,
        Bound::Excluded(to) => addr < to,
        Bound::Unbounded => true,
    };
    after && before
}

/// The merge of two ordered iterators. Where both have an item at an address, that of the upper one is used.
struct Overlaid<A: Iterator, B: Iterator> {
    above: Peekable<A>,
    below: Peekable<B>,
    reverse: bool,
}

impl<A, B> Iterator for Overlaid<A, B>
where
    A: Iterator<Item = (ItemAddr, Version)>,
    B: Iterator<Item = (ItemAddr, Version)>,
{
    type Item = (ItemAddr, Version);

    fn next(&mut self) -> Option<Self::Item> {
        let (Some(above), Some(below)) = (self.above.peek(), self.below.peek()) else {
            return self.above.next().or_else(|| self.below.next());
        };
        let order = above.0.cmp(&below.0);
        match if self.reverse { order.reverse() } else { order } {
            std::cmp::Ordering::Less => self.above.next(),
            std::cmp::Ordering::Greater => self.below.next(),
            std::cmp::Ordering::Equal => {
                self.below.next();
                self.above.next()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Memory;
    use proptest::prelude::*;

    fn addr(n: u8) -> ItemAddr {
        ItemAddr { key: vec![n], sort: Vec::new() }
    }
    fn version(n: u8) -> Version {
        Version { value: vec![n], deleted: false }
    }

    proptest! {
        /// A scan over storage and batch is the scan of the storage after the batch.
        #[test]
        fn a_call_sees_its_own_writes(
            below in proptest::collection::btree_map(0u8..40, any::<u8>(), 0..20),
            above in proptest::collection::btree_map(0u8..40, any::<u8>(), 0..20),
            from in 0u8..40, to in 0u8..40, reverse: bool,
        ) {
            let mut memory = Memory::default();
            memory.apply(below.iter().map(|(k, v)| (addr(*k), Some(version(*v)))).collect());
            let mut batch = Batch::default();
            above.iter().for_each(|(k, v)| batch.put(addr(*k), version(*v)));
            let (from, to) = (Bound::Included(addr(from)), Bound::Excluded(addr(to)));
            let below = memory.range(from.clone(), to.clone());
            let seen: Vec<_> = batch.scan(below, from.clone(), to.clone(), reverse).collect();
            memory.apply(batch.into_items().map(|item| { let (a, v) = item.into_parts(); (a, Some(v)) }).collect());
            let mut expected: Vec<_> = memory.range(from, to).map(|(a, v)| (a.clone(), v.clone())).collect();
            if reverse { expected.reverse(); }
            prop_assert_eq!(seen, expected);
        }
    }
}
