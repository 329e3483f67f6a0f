//! Items in this process's memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Place, Storage, Stored};

/// Lost with the process.
#[derive(Default)]
pub struct Memory {
    items: BTreeMap<Place, Stored>,
}

impl Storage for Memory {
    fn get(&self, place: &Place) -> Option<Stored> {
        self.items.get(place).cloned()
    }

    fn range(
        &self,
        from: Bound<Place>,
        to: Bound<Place>,
    ) -> Box<dyn DoubleEndedIterator<Item = (Place, Stored)> + '_> {
        // `BTreeMap::range` panics on a range that ends before it begins; here that is one
        // without items.
        if let (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) =
            (&from, &to)
            && a >= b
        {
            let same = a == b && matches!((&from, &to), (Bound::Included(_), Bound::Included(_)));
            if !same {
                return Box::new(std::iter::empty());
            }
        }
        Box::new(self.items.range((from, to)).map(|(place, stored)| (place.clone(), stored.clone())))
    }

    fn apply(&mut self, changes: Vec<(Place, Option<Stored>)>) {
        for (place, change) in changes {
            match change {
                Some(stored) => self.items.insert(place, stored),
                None => self.items.remove(&place),
            };
        }
    }

    fn len(&self) -> usize {
        self.items.len()
    }
}
