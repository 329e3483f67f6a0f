//! This vnode's private items, kept by the host. All writes of one call are one atomic batch,
//! committed only if the call returns `Ok`; reads see the call's own writes.
//!
//! Commands that are not described as reading may write, and so may `Lifecycle::terminate` and what
//! takes in or forgets items. Anything else may only read: `Vnode::init` that writes starts no instance.
//!
//! Nothing here fails towards the guest: when a limit, a wrong key or the disk stands in the way,
//! the host drops the call with all its writes and tells the caller.

#[cfg(target_arch = "wasm32")]
use crate::bindings::annulus::vnode::storage as imports;
pub use crate::bindings::annulus::vnode::storage::Selection;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::imports::storage as imports;
use crate::{Budget, Cursor, Emit, Failure, Page, State, Values, Version, decode_item, encode_item, host};

/// The state of a key; none if it has no item. A tombstone is a state like others.
///
/// # Panics
/// If the item cannot be read by this version: its state stays as it is, the caller is told.
#[must_use]
pub fn load<S: State>(key: impl AsRef<[u8]>) -> Option<S> {
    load_at(key, b"")
}

/// The state of one of a key's items.
///
/// # Panics
/// As [`load`].
#[must_use]
pub fn load_at<S: State>(key: impl AsRef<[u8]>, sort: impl AsRef<[u8]>) -> Option<S> {
    get(key.as_ref(), sort.as_ref()).map(|version| readable(&version.value))
}

/// Writes the state of a key, as a tombstone if it is one.
pub fn store<S: State>(key: impl AsRef<[u8]>, state: &S) {
    store_at(key, b"", state);
}

/// Writes the state of one of a key's items.
pub fn store_at<S: State>(key: impl AsRef<[u8]>, sort: impl AsRef<[u8]>, state: &S) {
    let value = encode_item(state, host::write_format());
    if state.is_deleted() {
        imports::delete(key.as_ref(), sort.as_ref(), &value);
    } else {
        imports::put(key.as_ref(), sort.as_ref(), &value);
    }
}

/// A page of coverage over all items that are no tombstones: one value for each.
///
/// # Errors
/// None now; the type is what a `handle_coverage` answers.
///
/// # Panics
/// As [`load`].
pub fn each<S: State>(at: Cursor, mut value: impl FnMut(&str, S) -> Emit) -> Result<Values, Failure> {
    let all = Selection { key: None, start: None, end: None, reverse: false, deleted: false };
    let page = scan(&all, at.after.as_deref(), at.limit);
    let mut values = Values { next: page.next, ..Values::default() };
    for item in page.items {
        values.push(value(&String::from_utf8_lossy(&item.key), readable(&item.value)));
    }
    Ok(values)
}

/// The bytes of one item, a tombstone too.
#[must_use]
pub fn get(key: &[u8], sort: &[u8]) -> Option<Version> {
    imports::get(key, sort)
}

/// Writes the bytes of one item.
pub fn put(key: &[u8], sort: &[u8], value: &[u8]) {
    imports::put(key, sort, value);
}

/// Leaves a tombstone that holds `remains`: what `merge` needs to know of the past.
pub fn delete(key: &[u8], sort: &[u8], remains: &[u8]) {
    imports::delete(key, sort, remains);
}

/// One page of items, in order. `after` is the `next` of the page before.
#[must_use]
pub fn scan(what: &Selection, after: Option<&[u8]>, limit: Budget) -> Page {
    imports::scan(what, after, limit)
}

fn readable<S: State>(bytes: &[u8]) -> S {
    match decode_item(bytes) {
        Ok(state) => state,
        Err(reason) => panic!("a stored item cannot be read: {reason}"),
    }
}
