//! The types that a guest and its host exchange in calls of the contract (`wit/vnode.wit`), in the form that
//! the host uses. The bindings convert to and from these types.

use crate::item::{ItemAddr, Version};

/// The partition of a vnode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Number of the partition, from 0.
    pub id: u32,
    /// Number of partitions in the ring.
    pub ring_size: u32,
}

/// A page of the values of a command that runs on every partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// CBOR, one document each.
    pub values: Vec<Vec<u8>>,
    /// Keys whose items the page changed, from a guest that keeps its items.
    pub touched: Vec<Vec<u8>>,
    /// Resume token of the next page, `None` for the last page.
    pub next: Option<Vec<u8>>,
}

/// Two versions of one item, for the module to merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Address of the item.
    pub addr: ItemAddr,
    /// The version in storage.
    pub local: Version,
    /// The version that arrived.
    pub incoming: Version,
}

/// The result of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeOutcome {
    /// Keep the version in storage.
    Local,
    /// Take the version that arrived.
    Incoming,
    /// Store this version.
    Merged(Version),
    /// The module cannot merge these versions, for this reason.
    Rejected(String),
}

/// An item that a guest could not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Index of the item in the call.
    pub index: u32,
    /// The guest's reason.
    pub reason: String,
}

/// The purpose of a transfer of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferKind {
    /// The partition gets another owner.
    Ownership,
    /// Items of a fallback return to their owner.
    Hinted,
    /// A replica is brought up to date.
    Repair,
    /// Another release replaces the running one.
    Swap,
    /// The ring gets another size.
    Resize,
    /// Items are restored from a backup.
    Restore,
}
