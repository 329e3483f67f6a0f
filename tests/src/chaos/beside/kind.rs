//! The two modules that run beside the one under load: what their clients say to them.

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
    /// Its guest traps now and then, and what it kept in that partition is gone.
    Trap,
    /// Its items have 1 to 8 MiB.
    Large,
}

/// One thing that is said to a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Put,
    Get,
    Delete,
    /// A write that traps.
    Trap,
}

/// A command and its arguments.
pub(super) type Said = (&'static str, Vec<(Value, Value)>);

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Trap, Self::Large];

    /// What the module is called.
    pub fn module(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Large => "large",
        }
    }

    /// How many keys. The large ones are few: what a guest needs to write one it keeps, some times as much.
    pub(super) fn keys(self) -> u32 {
        match self {
            Self::Trap => 240,
            Self::Large => 16,
        }
    }

    /// Of a client after each answer: the other modules and the nodes need their share of the machine.
    pub(super) fn rest(self) -> Duration {
        match self {
            Self::Trap => Duration::from_millis(30),
            Self::Large => Duration::from_millis(250),
        }
    }

    /// What is done for a number below 100.
    pub(super) fn act(self, drawn: u32) -> Act {
        match (self, drawn) {
            (Self::Trap, 0..4) => Act::Trap,
            (_, 0..45) => Act::Put,
            (_, 45..85) => Act::Get,
            _ => Act::Delete,
        }
    }

    /// How it is said.
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

    /// The number of the write that the answer to a [`Act::Get`] shows, all of it as it was written.
    ///
    /// # Errors
    /// What else it shows.
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

    /// Where a key of the module lives.
    pub(super) fn partition_of(self, key: &str, ring_size: u16) -> u16 {
        let size = RingSize::try_from(u32::from(ring_size)).unwrap_or_else(|error| panic!("{error}"));
        size.partition_of(&hash_key(self.module().as_bytes(), key.as_bytes())).0
    }
}

/// How large the item of a number is.
fn size_of(number: u64) -> u64 {
    // Fibonacci hashing: numbers that follow each other differ in size.
    LEAST_BYTES + (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % (MOST_BYTES - LEAST_BYTES + 1)
}

/// The sum of the item of a number, as `tests/guests/hostile/src/large.rs` makes both.
fn sum_of(number: u64) -> u64 {
    sum_of_bytes(number, size_of(number))
}

fn sum_of_bytes(number: u64, bytes: u64) -> u64 {
    let (mut state, mut sum) = (number | 1, 0_u64);
    for at in (0..bytes).step_by(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Of the last word only so many bytes.
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
    fn a_large_item_is_held_against_its_length_and_sum() {
        // As the guest's own test has it.
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
