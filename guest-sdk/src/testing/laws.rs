//! Checks the laws that replicas depend on, for examples.

use crate::{State, decode_item, encode_item};

/// Check that `merge` is commutative, associative and idempotent to the byte on every pair and triple of the
/// examples. Check also that each example is read as it was written, in every format, and that equal states
/// are written as equal bytes.
///
/// # Panics
/// If a law does not hold; the message names the law and the examples.
pub fn laws<S: State + Clone>(examples: &[S]) {
    let newest = S::FORMATS.last().copied().unwrap_or(1);
    let bytes = |state: &S| encode_item(state, newest);
    let both = |one: &S, other: &S| one.clone().merge(other.clone());
    for (a, one) in examples.iter().enumerate() {
        assert_eq!(bytes(one), bytes(&one.clone()), "written differently twice: example {a}");
        assert_eq!(bytes(&both(one, one)), bytes(one), "not idempotent: example {a} merged with itself");
        for format in S::FORMATS {
            let written = encode_item(one, *format);
            let read: S = match decode_item(&written) {
                Ok(read) => read,
                Err(reason) => panic!("example {a} cannot be read as written in format {format}: {reason}"),
            };
            assert_eq!(
                encode_item(&read, *format),
                written,
                "example {a} changes when read in format {format}"
            );
            assert_eq!(
                read.is_deleted(),
                one.is_deleted(),
                "example {a}: is_deleted changes when it is read again"
            );
        }
        for (b, other) in examples.iter().enumerate() {
            let merged = both(one, other);
            assert_eq!(bytes(&merged), bytes(&both(other, one)), "not commutative: examples {a} and {b}");
            assert_eq!(
                bytes(&both(&merged, other)),
                bytes(&merged),
                "not idempotent: examples {a}, {b}, {b}"
            );
            for (c, third) in examples.iter().enumerate() {
                let right = one.clone().merge(both(other, third));
                assert_eq!(
                    bytes(&both(&merged, third)),
                    bytes(&right),
                    "not associative: examples {a}, {b} and {c}"
                );
            }
        }
    }
}
