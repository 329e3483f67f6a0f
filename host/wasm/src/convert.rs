//! Conversions between the types of the bindings and those of the host.
//!
//! Arguments of calls borrow from the host's types, so that their bytes are copied once: into the guest's
//! memory. Results are moved.

use annulus_core::contract::{Conflict, MergeOutcome, Partition, Rejection, TransferKind, Values};
use annulus_core::item::{Budget, Item, ItemAddr, Page, Version};
use annulus_core::request::{GuestRefusal, Request};
use annulus_core::wording::one_line;

use super::bindings::annulus::vnode::types as wit;
use super::bindings::exports::annulus::vnode::{coverage, handoff, merge, transfer};
use super::error::said;

/// Longest code of a refusal, in bytes.
const MAX_CODE_BYTES: usize = 128;

impl From<Partition> for wit::Partition {
    fn from(Partition { id, ring_size }: Partition) -> Self {
        Self { id, ring_size }
    }
}

impl<'a> From<&'a Request> for wit::Request<'a> {
    fn from(request: &'a Request) -> Self {
        Self { command: &request.command, key: request.key.as_deref(), args: &request.args }
    }
}

impl From<wit::Refusal> for GuestRefusal {
    fn from(wit::Refusal { code, message, detail }: wit::Refusal) -> Self {
        Self { code: one_line(&code, MAX_CODE_BYTES).into_owned(), message: said(&message), detail }
    }
}

impl From<Budget> for wit::Budget {
    fn from(Budget { items, bytes }: Budget) -> Self {
        Self { items, bytes }
    }
}

impl From<wit::Budget> for Budget {
    fn from(wit::Budget { items, bytes }: wit::Budget) -> Self {
        Self { items, bytes }
    }
}

impl<'a> From<&'a Item> for wit::ItemParam<'a> {
    fn from(Item { key, sort, value, deleted }: &'a Item) -> Self {
        Self { key, sort, value, deleted: *deleted }
    }
}

impl From<wit::ItemResult> for Item {
    fn from(wit::ItemResult { key, sort, value, deleted }: wit::ItemResult) -> Self {
        Self { key, sort, value, deleted }
    }
}

impl From<Item> for wit::ItemResult {
    fn from(Item { key, sort, value, deleted }: Item) -> Self {
        Self { key, sort, value, deleted }
    }
}

impl From<wit::Page> for Page {
    fn from(wit::Page { items, next }: wit::Page) -> Self {
        Self { items: items.into_iter().map(Item::from).collect(), next }
    }
}

impl From<Page> for wit::Page {
    fn from(Page { items, next }: Page) -> Self {
        Self { items: items.into_iter().map(wit::ItemResult::from).collect(), next }
    }
}

impl<'a> From<&'a Version> for wit::VersionParam<'a> {
    fn from(Version { value, deleted }: &'a Version) -> Self {
        Self { value, deleted: *deleted }
    }
}

impl From<wit::VersionResult> for Version {
    fn from(wit::VersionResult { value, deleted }: wit::VersionResult) -> Self {
        Self { value, deleted }
    }
}

impl From<Version> for wit::VersionResult {
    fn from(Version { value, deleted }: Version) -> Self {
        Self { value, deleted }
    }
}

impl<'a> From<&'a Conflict> for merge::Conflict<'a> {
    fn from(Conflict { addr: ItemAddr { key, sort }, local, incoming }: &'a Conflict) -> Self {
        Self { key, sort, local: local.into(), incoming: incoming.into() }
    }
}

impl From<merge::Outcome> for MergeOutcome {
    fn from(outcome: merge::Outcome) -> Self {
        match outcome {
            merge::Outcome::Local => Self::Local,
            merge::Outcome::Incoming => Self::Incoming,
            merge::Outcome::Merged(version) => Self::Merged(version.into()),
            merge::Outcome::Rejected(reason) => Self::Rejected(reason),
        }
    }
}

impl From<handoff::Rejection> for Rejection {
    fn from(handoff::Rejection { index, reason }: handoff::Rejection) -> Self {
        Self { index, reason }
    }
}

impl From<coverage::Values> for Values {
    fn from(coverage::Values { values, touched, next }: coverage::Values) -> Self {
        Self { values, touched, next }
    }
}

impl From<TransferKind> for transfer::Kind {
    fn from(kind: TransferKind) -> Self {
        match kind {
            TransferKind::Ownership => Self::Ownership,
            TransferKind::Hinted => Self::Hinted,
            TransferKind::Repair => Self::Repair,
            TransferKind::Swap => Self::Swap,
            TransferKind::Resize => Self::Resize,
            TransferKind::Restore => Self::Restore,
        }
    }
}
