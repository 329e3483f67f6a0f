//! Items of some mebibytes that a client need neither send nor read back to know what they are.

use annulus_guest::prelude::*;

/// A number, and so many bytes that follow from it.
pub fn item(number: u64, bytes: u64) -> Value {
    let mut data = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    let mut state = number | 1;
    for chunk in data.chunks_mut(8) {
        // Marsaglia's xorshift64: no two words of an item are alike.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    Value::Array(vec![number.into(), Value::Bytes(data)])
}

/// Number, length and sum of the bytes as they are now.
pub fn sum(entry: &Latest<Value>) -> Option<(u64, u64, u64)> {
    let Value::Array(parts) = entry.value()? else { return None };
    let [Value::Integer(number), Value::Bytes(data)] = parts.as_slice() else { return None };
    let number = u64::try_from(*number).ok()?;
    let add = |sum: u64, chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        // The prime of FNV-1a, by words: the order counts too.
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3)
    };
    Some((number, data.len() as u64, data.chunks(8).fold(0, add)))
}
