//! Host storage: each vnode's private ordered items.
//!
//! Engines stand behind [`Storage`]. `memory` is lost with the process; the durable engine
//! comes with replication. A command's writes are gathered in a [`Batch`] over the storage and
//! applied at once or not at all.

mod batch;
mod memory;

use std::ops::Bound;

pub use batch::Batch;
pub use memory::Memory;

/// Place of an item: routing key, then sort, ordered as unsigned bytes.
pub type Place = (Vec<u8>, Vec<u8>);

/// What stands at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The item's value; of a tombstone, what merging needs to know of the past.
    pub value: Vec<u8>,
    /// A tombstone.
    pub deleted: bool,
}

/// Items in order, of one vnode.
pub trait Storage: Send + Sync {
    /// What stands there.
    fn get(&self, place: &Place) -> Option<Stored>;
    /// Items of a range, in order.
    fn range(
        &self,
        from: Bound<Place>,
        to: Bound<Place>,
    ) -> Box<dyn DoubleEndedIterator<Item = (Place, Stored)> + '_>;
    /// Applies one batch whole: `None` takes the item away.
    fn apply(&mut self, changes: Vec<(Place, Option<Stored>)>);
    /// How many items there are, tombstones too.
    fn len(&self) -> usize;
    /// Are there none?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
