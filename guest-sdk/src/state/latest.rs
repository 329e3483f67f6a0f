//! The newest write wins, ordered by the version that each write saw, not by a clock.

use std::cmp::Ordering;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::State;
use crate::reply::{from_cbor, to_cbor};
use crate::{Dot, host};

/// One value, or the tombstone of one: a write replaces the version that it saw.
///
/// Each write has a version one above the version that it saw, so no replica's wall clock matters. Of two
/// writes that did not see each other (on two sides of a network partition) the higher version wins, then the
/// higher dot. Every replica chooses the same one; the other is lost. Where both must be kept, `Latest` is
/// the wrong type.
#[derive(Clone, Debug, PartialEq)]
pub struct Latest<T> {
    version: u64,
    dot: Dot,
    value: Option<T>,
}

impl<T> Latest<T> {
    /// Return the state after a write that saw `before`; a `value` of `None` deletes. The host's dot
    /// identifies the write.
    #[must_use]
    pub fn after(before: Option<&Self>, value: Option<T>) -> Self {
        let version = before.map_or(0, |before| before.version).saturating_add(1);
        Self { version, dot: host::next_dot(), value }
    }

    /// Return the value, or `None` if it was deleted.
    #[must_use]
    pub fn get(self) -> Option<T> {
        self.value
    }

    /// Return a reference to the value, or `None` if it was deleted.
    #[must_use]
    pub fn value(&self) -> Option<&T> {
        self.value.as_ref()
    }

    fn order(&self) -> (u64, u64, u64) {
        (self.version, self.dot.actor, self.dot.counter)
    }
}

/// Size of the header: version, actor and counter, 8 bytes each.
const HEAD_BYTES: usize = 24;

impl<T: Serialize + DeserializeOwned> State for Latest<T> {
    /// Format 1: version, actor and counter, big-endian, then the value in CBOR. A tombstone has no value.
    fn write(&self, _format: u32, bytes: &mut Vec<u8>) {
        for number in [self.version, self.dot.actor, self.dot.counter] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        if let Some(value) = &self.value {
            ciborium::into_writer(value, bytes).expect("the state's own Serialize fails");
        }
    }

    fn read(_format: u32, bytes: &[u8]) -> Result<Self, String> {
        let (head, value) = bytes.split_at_checked(HEAD_BYTES).ok_or("the item is truncated")?;
        let mut numbers = head
            .chunks_exact(8)
            .map(|number| number.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)));
        let mut number = || numbers.next().unwrap_or_default();
        let (version, dot) = (number(), Dot { actor: number(), counter: number() });
        let value = if value.is_empty() { None } else { Some(from_cbor(value)?) };
        Ok(Self { version, dot, value })
    }

    fn merge(self, other: Self) -> Self {
        let order = self.order().cmp(&other.order()).then_with(|| {
            // One dot identifies one write, so only copies of one write get here. If a faulty host gave two
            // writes the same dot, all replicas would still end with the same bytes.
            let bytes = |state: &Self| state.value.as_ref().and_then(|value| to_cbor(value).ok());
            bytes(&self).cmp(&bytes(&other))
        });
        if order == Ordering::Less { other } else { self }
    }

    fn is_deleted(&self) -> bool {
        self.value.is_none()
    }
}
