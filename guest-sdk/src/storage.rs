//! This vnode's private items, kept by the host. All writes of one call are one atomic batch, committed only
//! if the call returns `Ok`. Reads see the call's own writes.
//!
//! Commands that are not described as reading may write, and so may `Lifecycle::terminate` and the callbacks
//! that receive or forget items. All other callbacks may only read; a `Vnode::init` that writes starts no
//! instance.
//!
//! No function here returns an error to the guest. When a limit, a wrong key or the disk prevents an operation,
//! the host drops the call with all its writes and returns the error to the caller.

#[cfg(target_arch = "wasm32")]
use crate::bindings::annulus::vnode::storage as imports;
pub use crate::bindings::annulus::vnode::storage::Selection;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::imports::storage as imports;
use crate::{Budget, Cursor, Emit, Failure, Page, State, Values, Version, decode_item, encode_item, host};

/// Return the state of a key, or `None` if it has no item. A tombstone is a state as well.
///
/// # Panics
/// If this version cannot read the item. The item does not change, and the caller gets an error.
#[must_use]
pub fn load<S: State>(key: impl AsRef<[u8]>) -> Option<S> {
    load_at(key, b"")
}

/// Return the state of one of a key's items, selected by its sort key.
///
/// # Panics
/// As for [`load`].
#[must_use]
pub fn load_at<S: State>(key: impl AsRef<[u8]>, sort: impl AsRef<[u8]>) -> Option<S> {
    get(key.as_ref(), sort.as_ref()).map(|version| readable(&version.value))
}

/// Write the state of a key; a deleted state becomes a tombstone.
pub fn store<S: State>(key: impl AsRef<[u8]>, state: &S) {
    store_at(key, b"", state);
}

/// Write the state of one of a key's items, selected by its sort key.
pub fn store_at<S: State>(key: impl AsRef<[u8]>, sort: impl AsRef<[u8]>, state: &S) {
    let value = encode_item(state, host::write_format());
    if state.is_deleted() {
        imports::delete(key.as_ref(), sort.as_ref(), &value);
    } else {
        imports::put(key.as_ref(), sort.as_ref(), &value);
    }
}

/// Return a page of coverage over all items that are not tombstones, with at most one value for each.
///
/// # Errors
/// None at present; the type is that of `handle_coverage`.
///
/// # Panics
/// As for [`load`].
pub fn each<S: State>(at: Cursor, mut value: impl FnMut(&str, S) -> Emit) -> Result<Values, Failure> {
    let all = Selection { key: None, start: None, end: None, reverse: false, deleted: false };
    let page = scan(&all, at.after.as_deref(), at.limit);
    let mut values = Values { next: page.next, ..Values::default() };
    for item in page.items {
        values.push(value(&String::from_utf8_lossy(&item.key), readable(&item.value)));
    }
    Ok(values)
}

/// Return the bytes of one item, which may be a tombstone.
#[must_use]
pub fn get(key: &[u8], sort: &[u8]) -> Option<Version> {
    imports::get(key, sort)
}

/// Write the bytes of one item.
pub fn put(key: &[u8], sort: &[u8], value: &[u8]) {
    imports::put(key, sort, value);
}

/// Delete an item and leave a tombstone that holds `remains`, the bytes that `merge` needs to know about the
/// past.
pub fn delete(key: &[u8], sort: &[u8], remains: &[u8]) {
    imports::delete(key, sort, remains);
}

/// Return one page of items, in order. `after` is the `next` of the previous page.
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
