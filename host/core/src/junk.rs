//! Arbitrary and damaged bytes, for the tests of everything that decodes bytes from outside the process.
//!
//! Each package names its decoders as [`Target`]s in a test, and `tests/tests/integration/decoders.rs` has the list of all files that
//! decode. The bytes follow from a seed, so a failure can be repeated. `ANNULUS_JUNK=5000000` sets the number of
//! attempts on each target.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Attempts on each target, without `ANNULUS_JUNK`.
const ATTEMPTS: u64 = 4_000;
/// Longest arbitrary input, in bytes.
const LONGEST: u64 = 400;

/// A decoder, with encodings that it accepts.
pub struct Target {
    /// The name, for the failure.
    pub name: &'static str,
    /// Valid inputs, from which damaged ones are made.
    pub valid: Vec<Vec<u8>>,
    /// Decodes the bytes, and drops the outcome.
    pub decode: fn(&[u8]),
}

/// A sequence of numbers that follows from its seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        // Bytes that begin lengths and nesting in CBOR are more frequent than others.
        const FREQUENT: [u8; 12] = [0, 1, 0x5b, 0x7b, 0x9b, 0xbb, 0x9f, 0xbf, 0xff, 0xf6, 0x1b, 0x3b];
        match self.below(3) {
            0 => FREQUENT[self.below(FREQUENT.len() as u64) as usize],
            _ => self.next() as u8,
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.below(LONGEST);
        (0..length).map(|_| self.byte()).collect()
    }

    /// Damage a valid input in a few places.
    fn damage(&mut self, valid: &[u8]) -> Vec<u8> {
        let mut bytes = valid.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() as u64 + 1) as usize;
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.byte()),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                4 if at < bytes.len() => {
                    let end = at + self.below((bytes.len() - at) as u64) as usize;
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                _ if at < bytes.len() => bytes[at] = self.byte(),
                _ => {}
            }
        }
        bytes
    }
}

/// Discard the outcome of a decoder.
pub fn done<T>(_: T) {}

/// Pass arbitrary and damaged bytes to each target.
///
/// # Panics
/// If a target does, with its name and the bytes.
pub fn attack(targets: &[Target]) {
    let attempts = std::env::var("ANNULUS_JUNK").ok().and_then(|text| text.parse().ok()).unwrap_or(ATTEMPTS);
    for target in targets {
        assert!(!target.valid.is_empty(), "{} has no valid input", target.name);
        target.valid.iter().for_each(|valid| attempt(target, valid));
        let mut numbers = Numbers(
            target
                .name
                .bytes()
                .fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte))),
        );
        for _ in 0..attempts {
            let bytes = match numbers.below(4) {
                0 => numbers.bytes(),
                _ => {
                    let which = numbers.below(target.valid.len() as u64) as usize;
                    numbers.damage(&target.valid[which])
                }
            };
            attempt(target, &bytes);
        }
    }
}

fn attempt(target: &Target, bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.decode)(bytes))).is_err() {
        panic!("{} panics on {bytes:02x?}", target.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_panics_is_noticed_by_its_name() {
        let careful = Target { name: "careful", valid: vec![vec![1, 2, 3]], decode: |_| {} };
        attack(&[careful]);
        let careless = Target {
            name: "careless",
            valid: vec![vec![1, 2, 3]],
            decode: |bytes| assert!(bytes.len() == 3, "the length is wrong"),
        };
        let caught = catch_unwind(|| attack(&[careless]));
        let said = caught.err().and_then(|said| said.downcast::<String>().ok());
        assert!(said.is_some_and(|said| said.starts_with("careless panics on")));
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let (mut one, mut two) = (Numbers(5), Numbers(5));
        for _ in 0..100 {
            assert_eq!(one.damage(&[1; 50]), two.damage(&[1; 50]));
        }
    }
}
