//! Items: the unit in which all state moves (R21), and the digest of any number of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Largest item, in bytes, that can be kept: as much as a guest's memory holds. Whatever moves items
/// carries one of this size.
pub const MAX_ITEM_BYTES: usize = 256 << 20;

/// `key` is the routing key and alone decides the partition; `sort` orders the items of one key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Item {
    /// The routing key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Empty where a key has one item.
    #[serde(with = "serde_bytes")]
    pub sort: Vec<u8>,
    /// Of a tombstone: what merge needs to know about the past.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// A tombstone (R12).
    pub deleted: bool,
}

impl Item {
    /// Its bytes on the wire and in budgets, but for a few of framing.
    pub fn len(&self) -> usize {
        self.key.len() + self.sort.len() + self.value.len()
    }

    /// Has it no bytes at all?
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

/// A digest of many items in any order, kept as they come: the sum modulo 2^128 of the first 16
/// bytes of each item's SHA-256, little-endian.
///
/// A sum and not an exclusive or, so that an item taken twice is seen. It tells loss and
/// damage, not malice: peers are authenticated.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDigest(#[serde(with = "serde_bytes")] [u8; 16]);

impl RangeDigest {
    /// Adds one item.
    pub fn add(&mut self, item: &Item) {
        self.add_parts(&item.key, &item.sort, &item.value, item.deleted);
    }

    /// Takes away one that was added.
    pub fn remove(&mut self, item: &Item) {
        self.change([&item.key, &item.sort, &item.value], item.deleted, u128::wrapping_sub);
    }

    /// Adds all that another digest is of.
    pub fn add_all(&mut self, other: &Self) {
        self.0 = u128::from_le_bytes(self.0).wrapping_add(u128::from_le_bytes(other.0)).to_le_bytes();
    }

    /// Adds an item that is known by its parts.
    pub fn add_parts(&mut self, key: &[u8], sort: &[u8], value: &[u8], deleted: bool) {
        self.change([key, sort, value], deleted, u128::wrapping_add);
    }

    fn change(&mut self, parts: [&[u8]; 3], deleted: bool, how: fn(u128, u128) -> u128) {
        let mut sha = Sha256::new();
        for part in parts {
            sha.update((part.len() as u64).to_le_bytes());
            sha.update(part);
        }
        sha.update([u8::from(deleted)]);
        let mut first = [0; 16];
        first.copy_from_slice(&sha.finalize()[..16]);
        self.0 = how(u128::from_le_bytes(self.0), u128::from_le_bytes(first)).to_le_bytes();
    }
}

impl fmt::Debug for RangeDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_le_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
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
        back.add_all(&digest(std::slice::from_ref(&b)));
        assert_eq!(back, digest(&[b, a]));
    }
}
