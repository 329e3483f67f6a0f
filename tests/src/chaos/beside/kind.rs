//! The two modules that run beside the one under load, and the commands that their clients send.

use std::time::Duration;

use annulus_core::keyspace::{RingSize, hash_key};
use ciborium::Value;

use crate::load::belief::Held;

/// Smallest and largest item of [`Kind::Large`], in bytes.
const LEAST_BYTES: u64 = 1 << 20;
const MOST_BYTES: u64 = 8 << 20;

/// A module beside the one under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The guest traps occasionally and loses the items of the partition.
    Trap,
    /// The items have 1 to 8 MiB.
    Large,
}

/// A command, independent of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Put,
    Get,
    Delete,
    /// A write whose command traps.
    Trap,
}

/// A command's name and its arguments.
pub(super) type Said = (&'static str, Vec<(Value, Value)>);

impl Kind {
    /// Both modules.
    pub const ALL: [Self; 2] = [Self::Trap, Self::Large];

    /// Return the module's name.
    pub fn module(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Large => "large",
        }
    }

    /// Return the number of keys. There are few large ones: a write needs several times an item's size in
    /// memory, and a guest's memory never shrinks.
    pub(super) fn keys(self) -> u32 {
        match self {
            Self::Trap => 240,
            Self::Large => 16,
        }
    }

    /// Return a client's pause after each answer; it leaves the machine to the other modules and the nodes.
    pub(super) fn rest(self) -> Duration {
        match self {
            Self::Trap => Duration::from_millis(30),
            Self::Large => Duration::from_millis(250),
        }
    }

    /// Return the command for a number drawn from 0 to 99.
    pub(super) fn act(self, drawn: u32) -> Act {
        match (self, drawn) {
            (Self::Trap, 0..4) => Act::Trap,
            (_, 0..45) => Act::Put,
            (_, 45..85) => Act::Get,
            _ => Act::Delete,
        }
    }

    /// Return the module's own command and arguments for an act.
    pub(super) fn say(self, act: Act, key: &str, number: u64) -> Said {
        let mut args: Vec<(Value, Value)> = vec![("key".into(), key.into())];
        let command = match (self, act) {
            (_, Act::Delete) => "delete",
            (Self::Trap, Act::Get) => "get",
            (Self::Large, Act::Get) => "sum",
            (Self::Large, Act::Put) => {
                args.extend([("number".into(), number.into()), ("bytes".into(), size_of(number).into())]);
                "fill"
            }
            (_, Act::Put | Act::Trap) => {
                args.push(("value".into(), number.into()));
                if act == Act::Put { "put" } else { "put-and-trap" }
            }
        };
        (command, args)
    }

    /// Parse the reply to an [`Act::Get`]: the number of the write that it shows.
    ///
    /// # Errors
    /// If the reply has another form, or the item is not complete and unchanged.
    pub(super) fn held(self, reply: &Value) -> Result<Held, String> {
        let unsigned = |value: &Value| value.as_integer().and_then(|number| u64::try_from(number).ok());
        let odd = || format!("answered {reply:?}");
        match (self, reply) {
            (_, Value::Null) => Ok(None),
            (Self::Trap, value) => unsigned(value).map(Some).ok_or_else(odd),
            (Self::Large, Value::Array(parts)) => {
                let parts: Option<Vec<u64>> = parts.iter().map(unsigned).collect();
                let Some([number, length, sum]) = parts.as_deref() else { return Err(odd()) };
                if (*length, *sum) != (size_of(*number), sum_of(*number)) {
                    return Err(format!("item {number} is damaged: {length} bytes with the sum {sum}"));
                }
                Ok(Some(*number))
            }
            (Self::Large, _) => Err(odd()),
        }
    }

    /// Return the partition of a key of this module.
    pub(super) fn partition_of(self, key: &str, ring_size: u16) -> u16 {
        let size = RingSize::try_from(u32::from(ring_size)).unwrap_or_else(|error| panic!("{error}"));
        size.partition_of(&hash_key(self.module().as_bytes(), key.as_bytes())).0
    }
}

/// Return the size in bytes of the item with this number.
fn size_of(number: u64) -> u64 {
    // Use Fibonacci hashing, so that consecutive numbers have different sizes.
    LEAST_BYTES + (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % (MOST_BYTES - LEAST_BYTES + 1)
}

/// Return the checksum of the item with this number; the guest's code is `tests/guests/hostile/src/large.rs`.
fn sum_of(number: u64) -> u64 {
    sum_of_bytes(number, size_of(number))
}

fn sum_of_bytes(number: u64, bytes: u64) -> u64 {
    let (mut state, mut sum) = (number | 1, 0_u64);
    for at in (0..bytes).step_by(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // The last word may be partial.
        let word = match bytes - at {
            left @ 1..8 => state & ((1 << (8 * left)) - 1),
            _ => state,
        };
        sum = (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_item_is_checked_by_length_and_sum() {
        // The guest's own test has the same value.
        assert_eq!(sum_of_bytes(1, 20), 13_978_727_734_681_134_829);
        let sizes: Vec<u64> = (0..200).map(size_of).collect();
        assert!(sizes.iter().all(|size| (LEAST_BYTES..=MOST_BYTES).contains(size)));
        assert!(sizes.iter().max() > Some(&(7 << 20)) && sizes.iter().min() < Some(&(2 << 20)));
        let reply = |length, sum: u64| Value::Array(vec![7.into(), Value::from(length), sum.into()]);
        let (length, sum) = (size_of(7), sum_of(7));
        assert_eq!(Kind::Large.held(&reply(length, sum)), Ok(Some(7)));
        assert_eq!(Kind::Large.held(&Value::Null), Ok(None));
        for damaged in [reply(length - 1, sum), reply(length, sum ^ 1), 7.into()] {
            assert!(Kind::Large.held(&damaged).is_err());
        }
    }
}
