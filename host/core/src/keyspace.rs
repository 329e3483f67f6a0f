//! Keyspace arithmetic, byte for byte riak_core's (DESIGN.md D1).

use serde::{Deserialize, Serialize};

/// A partition's id: `0..ring_size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub u16);

/// Number of partitions: a power of two, 8..=4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct RingSize(u16);

/// A ring size that is none.
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

impl From<RingSize> for u32 {
    fn from(size: RingSize) -> u32 {
        u32::from(size.0)
    }
}

/// A SHA-1 hash: a point of the keyspace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 20]);

impl RingSize {
    /// How many partitions.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Every partition id, in order.
    pub fn partitions(self) -> impl Iterator<Item = PartitionId> {
        (0..self.0).map(PartitionId)
    }
}
