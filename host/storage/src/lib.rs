//! Host storage: the ordered items of one vnode.
//!
//! A vnode and its guest use [`Items`], whichever engine keeps them: [`Memory`], whose items end with the process, or a
//! store on disk. [`Stores`] has all stores of a node on disk, over one database. The writes of a call are collected in
//! a [`Batch`] over the items and applied as a whole or not at all.

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
mod reserve;
mod stores;
mod witness;

pub use batch::Batch;
pub use error::StorageError;
pub use header::{LogPlace, StoreRole};
pub use items::{Counts, Items, Scope, WeakItems, Writer};
pub use memory::Memory;
pub use page::Selection;
pub use stores::{FoundStage, Health, Opened, SetAside, Stores, StoresConfig};

#[cfg(test)]
mod tests;
