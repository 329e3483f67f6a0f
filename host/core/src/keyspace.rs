//! Keyspace arithmetic, byte for byte that of riak_core (DESIGN.md D1).
//!
//! A key's place is the `sha1` of one frozen encoding, the Erlang external term format of `{<<bucket>>,
//! <<key>>}`. A partition takes the hashes *below* its index, so hash `h` belongs to `((h div inc) + 1) mod
//! Q`. `tests/vectors.rs` checks both against vectors made by riak_core.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::ids::write_hex;

/// A partition's id, in `0..ring_size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub u16);

/// Number of partitions: a power of two, 8..=4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct RingSize(u16);

/// The number is not a valid ring size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ring size is a power of two from 8 to 4096, not {0}")]
pub struct BadRingSize(pub u32);

impl TryFrom<u32> for RingSize {
    type Error = BadRingSize;
    fn try_from(size: u32) -> Result<Self, BadRingSize> {
        match u16::try_from(size) {
            Ok(small) if small.is_power_of_two() && (8..=4096).contains(&small) => Ok(Self(small)),
            _ => Err(BadRingSize(size)),
        }
    }
}

/// The ring size of a cluster that is founded without an explicit one: 64 (D1).
impl Default for RingSize {
    fn default() -> Self {
        Self(64)
    }
}

impl From<RingSize> for u32 {
    fn from(size: RingSize) -> u32 {
        u32::from(size.0)
    }
}

/// A SHA-1 hash: a point of the keyspace, as a big-endian number of 160 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 20]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// Hash a key of a bucket: SHA-1 over `131,104,2, 109,len32be(bucket),bucket, 109,len32be(key),key`. The
/// bucket is the module's name, the key is the routing key (R21).
///
/// # Panics
/// If either is 4 GiB or longer, which no frame can carry.
pub fn hash_key(bucket: &[u8], key: &[u8]) -> Hash {
    let mut sha = Sha1::new();
    sha.update([131, 104, 2]);
    for part in [bucket, key] {
        let length = u32::try_from(part.len()).expect("frames are far shorter than 4 GiB");
        sha.update([109]);
        sha.update(length.to_be_bytes());
        sha.update(part);
    }
    Hash(sha.finalize().into())
}

impl RingSize {
    /// Return the number of partitions.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Return every partition id, in order.
    pub fn partitions(self) -> impl Iterator<Item = PartitionId> {
        (0..self.0).map(PartitionId)
    }

    /// Return the partition that a hash belongs to.
    pub fn partition_of(self, hash: &Hash) -> PartitionId {
        // `h div inc` is the top log2(Q) bits of the hash, as inc = 2^160 / Q.
        let top = u16::from_be_bytes([hash.0[0], hash.0[1]]) >> (16 - self.0.trailing_zeros());
        PartitionId((top + 1) % self.0)
    }

    /// Return the partition's 160-bit index, `id * 2^160 / Q`, in decimal as riak_core prints it.
    pub fn index_of(self, id: PartitionId) -> String {
        // The index is `id` shifted left by 160 - log2(Q), which is at least 148, so all of it lies in the
        // top limbs of a 192-bit number (an id of a larger ring does no harm).
        let shift = 160 - self.0.trailing_zeros();
        let mut limbs = [0u32; 6];
        let (limb, bits) = ((shift / 32) as usize, shift % 32);
        let wide = u64::from(id.0) << bits;
        limbs[limb] = wide as u32;
        limbs[limb + 1] = (wide >> 32) as u32;
        decimal(limbs)
    }
}

/// Format a number of little-endian 32-bit limbs in decimal, nine digits at a time.
fn decimal(mut limbs: [u32; 6]) -> String {
    const NINE_DIGITS: u64 = 1_000_000_000;
    let mut groups = Vec::with_capacity(7);
    while limbs.iter().any(|limb| *limb != 0) {
        let mut rest = 0u64;
        for limb in limbs.iter_mut().rev() {
            let wide = rest << 32 | u64::from(*limb);
            *limb = (wide / NINE_DIGITS) as u32;
            rest = wide % NINE_DIGITS;
        }
        groups.push(rest);
    }
    let Some(first) = groups.pop() else { return "0".into() };
    let tail = groups.iter().rev().map(|group| format!("{group:09}"));
    std::iter::once(first.to_string()).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_hash_of_the_tutorials_example_matches_riak_core() {
        assert_eq!(hash_key(b"foo", b"bar").to_string(), "49d41bea680d96cf005256b77de1ac9a872e0670");
    }

    #[test]
    fn a_hash_on_a_boundary_belongs_to_the_partition_after_it_and_the_last_wraps() {
        let ring = RingSize::try_from(64).unwrap();
        assert_eq!(ring.partition_of(&Hash([0; 20])), PartitionId(1));
        let mut boundary = [0; 20];
        boundary[0] = 0b0000_0100;
        assert_eq!(ring.partition_of(&Hash(boundary)), PartitionId(2));
        assert_eq!(ring.partition_of(&Hash([0xff; 20])), PartitionId(0));
    }

    #[test]
    fn sizes_out_of_range_or_not_a_power_of_two_are_rejected() {
        for bad in [0, 1, 4, 7, 9, 63, 65, 4095, 8192, 65536, u32::MAX] {
            assert_eq!(RingSize::try_from(bad), Err(BadRingSize(bad)));
        }
        for good in [8, 16, 64, 1024, 4096] {
            assert_eq!(u32::from(RingSize::try_from(good).unwrap()), good);
        }
    }

    #[test]
    fn every_index_times_the_ring_size_is_the_id_times_two_to_the_160() {
        // Q = 4096: inc = 2^148, the smallest shift.
        let ring = RingSize::try_from(4096).unwrap();
        assert_eq!(ring.index_of(PartitionId(0)), "0");
        assert_eq!(ring.index_of(PartitionId(1)), "356811923176489970264571492362373784095686656");
        let ring = RingSize::try_from(64).unwrap();
        assert_eq!(ring.index_of(PartitionId(1)), "22835963083295358096932575511191922182123945984");
    }
}
