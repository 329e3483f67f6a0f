//! Items of several mebibytes. Their content follows from a number and a length, so that a client can check it
//! without sending or reading it.

use annulus_guest::prelude::*;

/// Return a number and this many bytes that follow from it.
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

/// Return the number, the length and the sum of the current bytes.
pub fn sum(entry: &Latest<Value>) -> Option<(u64, u64, u64)> {
    let Value::Array(parts) = entry.value()? else { return None };
    let [Value::Integer(number), Value::Bytes(data)] = parts.as_slice() else { return None };
    let number = u64::try_from(*number).ok()?;
    let add = |sum: u64, chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        // The prime of FNV-1a, applied to words, so that their order matters too.
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3)
    };
    Some((number, data.len() as u64, data.chunks(8).fold(0, add)))
}
