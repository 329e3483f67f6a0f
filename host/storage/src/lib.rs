//! Host storage: the ordered items of one vnode.
//!
//! [`Items`] is what a vnode and its guest see of it. [`Memory`] is the only engine so far; its items end with the
//! process. The writes of a call are collected in a [`Batch`] over the items and applied as a whole or not at all.

mod batch;
mod cache;
mod committer;
mod database;
mod durable;
mod error;
mod header;
mod items;
mod keys;
mod memory;
mod page;
mod space;
mod stores;
mod witness;

pub use batch::Batch;
pub use error::StorageError;
pub use header::StoreRole;
pub use items::{Counts, Items, Scope, WeakItems, Writer};
pub use memory::Memory;
pub use page::Selection;
pub use stores::{FoundStage, Health, Opened, SetAside, Stores, StoresConfig};

#[cfg(test)]
mod tests;
