//! The keys and values of items in the engine.
//!
//! A key is `partition u16 | store u16 | routing key | 00 00 | sort`, big-endian, so that the keys of a store are ordered
//! like its addresses (R23). Each byte 00 of the routing key is followed by FF. A value is a format byte, a byte of flags
//! and the item's value.

use std::ops::Bound;

use annulus_core::item::{ItemAddr, Version};
use annulus_core::keyspace::PartitionId;
use bytes::Bytes;

/// The store of one vnode: its partition, and a number that is unique among the partition's stores of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StoreId {
    pub(super) partition: PartitionId,
    pub(super) number: u16,
}

/// The longest key that the engine takes, in bytes; it panics on a longer one.
pub(super) const MAX_KEY: usize = 65_535;

/// Format of the values.
const FORMAT: u8 = 1;
/// The item is a tombstone.
const DELETED: u8 = 1;
/// Length of format and flags.
pub(super) const VALUE_HEAD: usize = 2;

impl StoreId {
    /// Return the first bytes of all keys of the store.
    pub(super) fn prefix(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.partition.0.to_be_bytes(), self.number.to_be_bytes());
        [a, b, c, d]
    }

    /// Return the store whose number and partition these are.
    pub(super) fn of_prefix([a, b, c, d]: [u8; 4]) -> Self {
        Self { partition: PartitionId(u16::from_be_bytes([a, b])), number: u16::from_be_bytes([c, d]) }
    }

    /// Return the bounds of all keys of the store.
    pub(super) fn bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        let first = u32::from_be_bytes(self.prefix());
        let end = Bytes::copy_from_slice(&first.saturating_add(1).to_be_bytes());
        (Bound::Included(Bytes::copy_from_slice(&self.prefix())), Bound::Excluded(end))
    }

    /// Return the key of an item.
    pub(super) fn key(self, addr: &ItemAddr) -> Bytes {
        let zeros = addr.key.iter().filter(|byte| **byte == 0).count();
        let mut key = Vec::with_capacity(4 + addr.key.len() + zeros + 2 + addr.sort.len());
        key.extend_from_slice(&self.prefix());
        for byte in &addr.key {
            key.push(*byte);
            if *byte == 0 {
                key.push(0xff);
            }
        }
        key.extend_from_slice(&[0, 0]);
        key.extend_from_slice(&addr.sort);
        key.into()
    }

    /// Return the bounds of the keys of a range of addresses.
    pub(super) fn range(self, from: &Bound<ItemAddr>, to: &Bound<ItemAddr>) -> (Bound<Bytes>, Bound<Bytes>) {
        let (first, end) = self.bounds();
        // No item lies between a key that is too long and its longest part that is not.
        let cut = |mut key: Bytes| {
            key.truncate(MAX_KEY);
            key
        };
        let from = match from {
            Bound::Unbounded => first,
            Bound::Included(addr) | Bound::Excluded(addr) if self.key(addr).len() > MAX_KEY => {
                Bound::Excluded(cut(self.key(addr)))
            }
            other => other.as_ref().map(|addr| self.key(addr)),
        };
        let to = match to {
            Bound::Unbounded => end,
            Bound::Included(addr) | Bound::Excluded(addr) if self.key(addr).len() > MAX_KEY => {
                Bound::Included(cut(self.key(addr)))
            }
            other => other.as_ref().map(|addr| self.key(addr)),
        };
        (from, to)
    }
}

/// Return the address in a key; `None` if no store has written it.
pub(super) fn addr_of(key: &[u8]) -> Option<ItemAddr> {
    let (_, mut rest) = key.split_at_checked(4)?;
    let mut routing = Vec::with_capacity(rest.len().saturating_sub(2));
    loop {
        let (byte, after) = rest.split_first()?;
        rest = after;
        if *byte != 0 {
            routing.push(*byte);
            continue;
        }
        let (second, after) = rest.split_first()?;
        rest = after;
        match second {
            0 => return Some(ItemAddr { key: routing, sort: rest.to_vec() }),
            0xff => routing.push(0),
            _ => return None,
        }
    }
}

/// Return the value of an item in the engine.
pub(super) fn encode(version: &Version) -> Bytes {
    let mut value = Vec::with_capacity(VALUE_HEAD + version.value.len());
    value.extend_from_slice(&[FORMAT, if version.deleted { DELETED } else { 0 }]);
    value.extend_from_slice(&version.value);
    value.into()
}

/// Return the item in a value; `None` for a value of an unknown format, which is damage.
pub(super) fn decode(value: &[u8]) -> Option<Version> {
    match value {
        [FORMAT, flags @ (0 | DELETED), value @ ..] => {
            Some(Version { value: value.to_vec(), deleted: *flags == DELETED })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn addr() -> impl Strategy<Value = ItemAddr> {
        let bytes =
            || proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..6);
        (bytes(), bytes()).prop_map(|(key, sort)| ItemAddr { key, sort })
    }

    proptest! {
        #[test]
        fn keys_are_ordered_like_addresses_and_can_be_read_back(a in addr(), b in addr(), partition: u16, number: u16) {
            let store = StoreId { partition: PartitionId(partition), number };
            prop_assert_eq!(store.key(&a).cmp(&store.key(&b)), a.cmp(&b));
            prop_assert_eq!(addr_of(&store.key(&a)), Some(a.clone()));
            prop_assert_eq!(StoreId::of_prefix(store.prefix()), store);
            let (Bound::Included(first), Bound::Excluded(end)) = store.bounds() else { unreachable!() };
            prop_assert!(first <= store.key(&a));
            prop_assert!(store.key(&a) < end || (partition, number) == (u16::MAX, u16::MAX));
        }

        #[test]
        fn arbitrary_bytes_are_items_or_damage(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(addr) = addr_of(&bytes) {
                let store = StoreId::of_prefix(*bytes.first_chunk().unwrap());
                prop_assert_eq!(&store.key(&addr)[..], &bytes[..]);
            }
            if let Some(version) = decode(&bytes) {
                prop_assert_eq!(&encode(&version)[..], &bytes[..]);
            }
        }
    }
}
