//! The writes of one call over the storage that it reads.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

use super::{Place, Storage, Stored};

/// One call's writes, seen by its own reads, not yet in the storage.
#[derive(Default)]
pub struct Batch {
    writes: BTreeMap<Place, Stored>,
    bytes: usize,
}

impl Batch {
    /// Writes an item; the last write to a place counts.
    pub fn put(&mut self, place: Place, stored: Stored) {
        self.bytes += place.0.len() + place.1.len() + stored.value.len();
        self.writes.insert(place, stored);
    }

    /// How many bytes were written so far, overwritten ones counted again.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Has nothing been written?
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// What the call sees at a place.
    pub fn get(&self, storage: &dyn Storage, place: &Place) -> Option<Stored> {
        self.writes.get(place).cloned().or_else(|| storage.get(place))
    }

    /// What the call sees of a range, in order (or in reverse).
    pub fn scan<'a>(
        &'a self,
        storage: &'a dyn Storage,
        from: Bound<Place>,
        to: Bound<Place>,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = (Place, Stored)> + 'a> {
        let below = storage.range(from.clone(), to.clone());
        let above = self.writes.iter().filter(move |(place, _)| within(place, &from, &to));
        let above = above.map(|(place, stored)| (place.clone(), stored.clone()));
        if reverse {
            Box::new(Overlaid { above: above.rev().peekable(), below: below.rev().peekable(), reverse })
        } else {
            Box::new(Overlaid { above: above.peekable(), below: below.peekable(), reverse })
        }
    }

    /// The writes, in order.
    pub fn into_writes(self) -> impl Iterator<Item = (Place, Stored)> {
        self.writes.into_iter()
    }
}

fn within(place: &Place, from: &Bound<Place>, to: &Bound<Place>) -> bool {
    let after = match from {
        Bound::Included(from) => place >= from,
        Bound::Excluded(from) => place > from,
        Bound::Unbounded => true,
    };
    let before = match to {
        Bound::Included(to) => place <= to,
        Bound::Excluded(to) => place < to,
        Bound::Unbounded => true,
    };
    after && before
}

/// Two ordered runs as one; where both have a place, the upper one counts.
struct Overlaid<A: Iterator, B: Iterator> {
    above: Peekable<A>,
    below: Peekable<B>,
    reverse: bool,
}

impl<A, B> Iterator for Overlaid<A, B>
where
    A: Iterator<Item = (Place, Stored)>,
    B: Iterator<Item = (Place, Stored)>,
{
    type Item = (Place, Stored);

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

    fn place(n: u8) -> Place {
        (vec![n], Vec::new())
    }
    fn stored(n: u8) -> Stored {
        Stored { value: vec![n], deleted: false }
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
            memory.apply(below.iter().map(|(k, v)| (place(*k), Some(stored(*v)))).collect());
            let mut batch = Batch::default();
            above.iter().for_each(|(k, v)| batch.put(place(*k), stored(*v)));
            let range = (Bound::Included(place(from)), Bound::Excluded(place(to)));
            let seen: Vec<_> = batch.scan(&memory, range.0.clone(), range.1.clone(), reverse).collect();
            memory.apply(batch.into_writes().map(|(p, s)| (p, Some(s))).collect());
            let mut expected: Vec<_> = memory.range(range.0, range.1).collect();
            if reverse { expected.reverse(); }
            prop_assert_eq!(seen, expected);
        }
    }
}
