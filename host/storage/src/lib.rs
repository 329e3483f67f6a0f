//! Host storage: the ordered items of one vnode.
//!
//! [`Storage`] is the interface of an engine. [`Memory`] is the only engine so far; its items end with the
//! process. The writes of a call are collected in a [`Batch`] over the storage and applied as a whole or not
//! at all.

mod batch;
mod memory;

use std::ops::Bound;

use annulus_core::item::{ItemAddr, Version};

pub use batch::Batch;
pub use memory::Memory;

/// The items of one vnode, ordered by address.
pub trait Storage: Send + Sync {
    /// Return the version at an address.
    fn get(&self, addr: &ItemAddr) -> Option<Version>;
    /// Iterate over the items in a range, in order.
    fn range(
        &self,
        from: Bound<ItemAddr>,
        to: Bound<ItemAddr>,
    ) -> Box<dyn DoubleEndedIterator<Item = (ItemAddr, Version)> + '_>;
    /// Apply a batch as a whole. `None` removes the item.
    fn apply(&mut self, changes: Vec<(ItemAddr, Option<Version>)>);
    /// Return the number of items, tombstones included.
    fn len(&self) -> usize;
    /// Return the size of all items, in bytes of key, sort and value.
    fn bytes(&self) -> usize;
    /// Return true if there are no items.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
