//! Items in the guest's own memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{State, decode_item, encode_item};
use crate::coverage::Remaining;
use crate::{Budget, Cursor, Emit, Failure, Item, Page, Values, host};

/// State as items, for [`Handoff`](crate::Handoff). The host uses it to replicate the state, to move it to
/// another node, and to transfer it to the next version of the module.
pub trait Items {
    /// Return one page of all items, including tombstones, in the order of their keys. The page ends at the
    /// budget, but not before the first item. The token in `next` may be passed to another instance.
    fn fold(&self, after: Option<&[u8]>, limit: Budget) -> Page;
    /// Return the items of one key, including tombstones.
    fn encode_handoff_items(&self, key: &[u8]) -> Vec<Item>;
    /// Merge an item from a replica, another node, an older version or a backup.
    ///
    /// # Errors
    /// A message that says why it cannot be read. The state is unchanged.
    fn handle_handoff_item(&mut self, item: Item) -> Result<(), String>;
    /// Drop a tombstone if it is still exactly this one.
    fn forget(&mut self, tombstone: &Item);
    /// Return true if there are no items at all, not even tombstones.
    fn is_empty(&self) -> bool;
    /// Return the approximate number of items.
    fn count(&self) -> u64;
    /// Drop all items.
    fn delete(&mut self);
}

/// A map of keys to states in the guest's memory, in the order of the keys' bytes, with one item for each
/// key. It is lost when the instance ends; before an orderly end the host transfers its items.
#[derive(Clone, Debug)]
pub struct Table<T> {
    states: BTreeMap<Vec<u8>, T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { states: BTreeMap::new() }
    }
}

impl<T: State> Table<T> {
    /// Return the state of a key, which may be a tombstone.
    #[must_use]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<&T> {
        self.states.get(key.as_ref())
    }

    /// Set the state of a key and return the previous one.
    pub fn set(&mut self, key: impl AsRef<[u8]>, state: T) -> Option<T> {
        if let Some(present) = self.states.get_mut(key.as_ref()) {
            return Some(std::mem::replace(present, state));
        }
        self.states.insert(key.as_ref().to_vec(), state)
    }

    /// Return the number of keys, without tombstones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.values().filter(|state| !state.is_deleted()).count()
    }

    /// Return true if there are no keys except tombstones.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.values().all(State::is_deleted)
    }

    /// Return a page of coverage over all keys that are not deleted, with at most one value for each.
    ///
    /// # Errors
    /// None at present; the type is that of `handle_coverage`.
    pub fn each(&self, at: Cursor, mut value: impl FnMut(&str, &T) -> Emit) -> Result<Values, Failure> {
        let mut values = Values::default();
        let mut remaining = Remaining::of(at.limit);
        let mut following = self.after(at.after.as_deref()).peekable();
        while let Some((key, state)) = following.next() {
            let mut bytes = 0;
            if !state.is_deleted() {
                bytes = values.push(value(&String::from_utf8_lossy(key), state));
            }
            if !remaining.take(bytes) {
                values.next = following.peek().map(|_| key.clone());
                break;
            }
        }
        Ok(values)
    }

    /// Return a page like [`each`](Table::each), but replace the state of every key that is not deleted, and
    /// report these keys to the host as touched.
    ///
    /// # Errors
    /// None at present; the type is that of `handle_coverage`.
    pub fn change_each(
        &mut self,
        at: Cursor,
        mut change: impl FnMut(&str, &T) -> (T, Emit),
    ) -> Result<Values, Failure> {
        let mut values = Values::default();
        let mut remaining = Remaining::of(at.limit);
        let mut following = self.states.range_mut::<[u8], _>(beyond(at.after.as_deref())).peekable();
        while let Some((key, state)) = following.next() {
            let mut bytes = 0;
            if !state.is_deleted() {
                let (changed, value) = change(&String::from_utf8_lossy(key), state);
                *state = changed;
                bytes = key.len() + values.push(value);
                values.touched.push(key.clone());
            }
            if !remaining.take(bytes) {
                values.next = following.peek().map(|_| key.clone());
                break;
            }
        }
        Ok(values)
    }

    fn after(&self, after: Option<&[u8]>) -> impl Iterator<Item = (&Vec<u8>, &T)> {
        self.states.range::<[u8], _>(beyond(after))
    }
}

/// Return the range of keys after a token; the token is the last key of the previous page.
fn beyond(after: Option<&[u8]>) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

fn item<T: State>(key: &[u8], state: &T, format: u32) -> Item {
    let value = encode_item(state, format);
    Item { key: key.to_vec(), sort: Vec::new(), value, deleted: state.is_deleted() }
}

impl<T: State> Items for Table<T> {
    fn fold(&self, after: Option<&[u8]>, limit: Budget) -> Page {
        let format = host::write_format();
        let mut page = Page { items: Vec::new(), next: None };
        let mut remaining = Remaining::of(limit);
        let mut following = self.after(after).peekable();
        while let Some((key, state)) = following.next() {
            let item = item(key, state, format);
            let full = !remaining.take(item.key.len() + item.value.len());
            page.items.push(item);
            if full {
                page.next = following.peek().map(|_| key.clone());
                break;
            }
        }
        page
    }

    fn encode_handoff_items(&self, key: &[u8]) -> Vec<Item> {
        let format = host::write_format();
        self.states.get(key).map(|state| item(key, state, format)).into_iter().collect()
    }

    fn handle_handoff_item(&mut self, item: Item) -> Result<(), String> {
        if !item.sort.is_empty() {
            return Err("the item has a sort key, but a Table has one item for each key".to_owned());
        }
        let incoming: T = decode_item(&item.value)?;
        let merged = match self.states.remove(&item.key) {
            Some(local) => local.merge(incoming),
            None => incoming,
        };
        self.states.insert(item.key, merged);
        Ok(())
    }

    fn forget(&mut self, tombstone: &Item) {
        let Some(state) = self.states.get(&tombstone.key) else { return };
        let format = tombstone.value.first().map_or(0, |format| u32::from(*format));
        if state.is_deleted() && tombstone.sort.is_empty() && encode_item(state, format) == tombstone.value {
            self.states.remove(&tombstone.key);
        }
    }

    fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    fn count(&self) -> u64 {
        self.states.len() as u64
    }

    fn delete(&mut self) {
        self.states.clear();
    }
}
