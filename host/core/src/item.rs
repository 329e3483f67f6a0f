//! Items, the unit in which all state moves (R21), and the digest of a set of items.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The largest item in bytes: the memory limit of a guest. Every transport and store of items accepts one of
/// this size.
pub const MAX_ITEM_BYTES: usize = 256 << 20;

/// One version of a key's state, as guests, storage and handoffs exchange it.
///
/// `key` is the routing key and alone decides the partition; `sort` orders the items of one key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Item {
    /// The routing key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Empty for a key with a single item.
    #[serde(with = "serde_bytes")]
    pub sort: Vec<u8>,
    /// Of a tombstone: the history that a merge needs.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// True for a tombstone (R12).
    pub deleted: bool,
}

/// The address of an item in its vnode: routing key, then sort, ordered as unsigned bytes.
///
/// On the wire it is an array of the two byte strings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "AddrOnWire", into = "AddrOnWire")]
pub struct ItemAddr {
    /// The routing key.
    pub key: Vec<u8>,
    /// Empty for a key with a single item.
    pub sort: Vec<u8>,
}

/// The serialized form of an [`ItemAddr`].
#[derive(Serialize, Deserialize)]
struct AddrOnWire(#[serde(with = "serde_bytes")] Vec<u8>, #[serde(with = "serde_bytes")] Vec<u8>);

/// The content of an item: a value or a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Of a tombstone: the history that a merge needs.
    pub value: Vec<u8>,
    /// True for a tombstone (R12).
    pub deleted: bool,
}

/// A page of a vnode's items, in the order of their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The items, tombstones included.
    pub items: Vec<Item>,
    /// Resume token of the next page, `None` for the last page.
    pub next: Option<Vec<u8>>,
}

/// Limits of one page. A page has at least one item if any is left, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Maximum number of items.
    pub items: u32,
    /// Maximum size in bytes.
    pub bytes: u32,
}

impl ItemAddr {
    /// Return the address of an item.
    pub fn of(item: &Item) -> Self {
        Self { key: item.key.clone(), sort: item.sort.clone() }
    }
}

impl From<AddrOnWire> for ItemAddr {
    fn from(AddrOnWire(key, sort): AddrOnWire) -> Self {
        Self { key, sort }
    }
}

impl From<ItemAddr> for AddrOnWire {
    fn from(ItemAddr { key, sort }: ItemAddr) -> Self {
        Self(key, sort)
    }
}

impl Item {
    /// Join an address and a version.
    pub fn new(ItemAddr { key, sort }: ItemAddr, Version { value, deleted }: Version) -> Self {
        Self { key, sort, value, deleted }
    }

    /// Split into address and version.
    pub fn into_parts(self) -> (ItemAddr, Version) {
        let Self { key, sort, value, deleted } = self;
        (ItemAddr { key, sort }, Version { value, deleted })
    }

    /// Return the size in bytes that budgets and limits count: key, sort and value, without framing.
    pub fn len(&self) -> usize {
        self.key.len() + self.sort.len() + self.value.len()
    }

    /// Return true if key, sort and value are all empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, sort) = (self.key.escape_ascii(), self.sort.escape_ascii());
        let deleted = if self.deleted { ", deleted" } else { "" };
        write!(f, "Item({key}/{sort}, {} bytes{deleted})", self.value.len())
    }
}

/// An incremental digest of items, independent of their order: the sum modulo 2^128 of the first 16 bytes of
/// each item's SHA-256, little-endian.
///
/// A sum rather than an exclusive or, so that an item counted twice changes the digest. It detects loss and
/// damage, not malice: peers are authenticated.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDigest(#[serde(with = "serde_bytes")] [u8; 16]);

impl RangeDigest {
    /// Return the digest of items.
    pub fn of<'a>(items: impl IntoIterator<Item = &'a Item>) -> Self {
        let mut digest = Self::default();
        items.into_iter().for_each(|item| digest.add(item));
        digest
    }

    /// Return the bytes of the digest.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Return the digest with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Add an item.
    pub fn add(&mut self, item: &Item) {
        let Item { key, sort, value, deleted } = item;
        self.change((key, sort), (value, *deleted), u128::wrapping_add);
    }

    /// Add the item at an address.
    pub fn add_at(&mut self, addr: &ItemAddr, version: &Version) {
        self.change((&addr.key, &addr.sort), (&version.value, version.deleted), u128::wrapping_add);
    }

    /// Remove the item at an address, which was added.
    pub fn remove_at(&mut self, addr: &ItemAddr, version: &Version) {
        self.change((&addr.key, &addr.sort), (&version.value, version.deleted), u128::wrapping_sub);
    }

    /// Remove an item that was added.
    pub fn remove(&mut self, item: &Item) {
        let Item { key, sort, value, deleted } = item;
        self.change((key, sort), (value, *deleted), u128::wrapping_sub);
    }

    /// Add all items of another digest.
    pub fn add_all(&mut self, other: &Self) {
        self.0 = u128::from_le_bytes(self.0).wrapping_add(u128::from_le_bytes(other.0)).to_le_bytes();
    }

    fn change(
        &mut self,
        (key, sort): (&[u8], &[u8]),
        (value, deleted): (&[u8], bool),
        combine: fn(u128, u128) -> u128,
    ) {
        let mut sha = Sha256::new();
        for part in [key, sort, value] {
            sha.update((part.len() as u64).to_le_bytes());
            sha.update(part);
        }
        sha.update([u8::from(deleted)]);
        let mut first = [0; 16];
        first.copy_from_slice(&sha.finalize()[..16]);
        self.0 = combine(u128::from_le_bytes(self.0), u128::from_le_bytes(first)).to_le_bytes();
    }
}

impl fmt::Debug for RangeDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_le_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn item(key: &str, value: &str) -> Item {
        Item { key: key.into(), sort: Vec::new(), value: value.into(), deleted: false }
    }

    fn digest(items: &[Item]) -> RangeDigest {
        let mut digest = RangeDigest::default();
        items.iter().for_each(|item| digest.add(item));
        digest
    }

    #[test]
    fn order_does_not_matter_and_everything_else_does() {
        let (a, b) = (item("a", "1"), item("b", "2"));
        assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
        let others = [
            digest(std::slice::from_ref(&a)),
            digest(&[a.clone(), a.clone(), b.clone()]),
            digest(&[a.clone(), item("b2", "")]),
            digest(&[a.clone(), Item { deleted: true, ..b.clone() }]),
            digest(&[a.clone(), Item { sort: b.key.clone(), key: Vec::new(), ..b.clone() }]),
        ];
        assert!(!others.contains(&digest(&[a.clone(), b.clone()])));
        let mut back = digest(&[a.clone(), b.clone()]);
        back.remove(&b);
        assert_eq!(back, digest(std::slice::from_ref(&a)));
        let (addr, version) = b.clone().into_parts();
        let mut at = RangeDigest::default();
        at.add_at(&addr, &version);
        assert_eq!(at, digest(std::slice::from_ref(&b)));
        back.add_all(&at);
        at.remove_at(&addr, &version);
        assert_eq!(at, RangeDigest::default());
        assert_eq!(back, digest(&[b, a]));
    }

    #[test]
    fn an_address_is_an_array_of_two_byte_strings_on_the_wire() {
        let addr = ItemAddr { key: b"k".to_vec(), sort: b"so".to_vec() };
        let mut bytes = Vec::new();
        ciborium::into_writer(&addr, &mut bytes).unwrap();
        assert_eq!(bytes, [0x82, 0x41, b'k', 0x42, b's', b'o']);
        assert_eq!(ciborium::from_reader::<ItemAddr, _>(&bytes[..]).unwrap(), addr);
    }
}
