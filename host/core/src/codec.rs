//! CBOR for control messages and records: what nodes say to each other and to themselves (D5).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that are not the message they should be, or a message that cannot be bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid message: {0}")]
pub struct CodecError(String);

impl CodecError {
    /// Bytes that are not those that were written.
    pub fn checksum() -> Self {
        Self("its checksum does not match".into())
    }
}

/// A value as CBOR.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|error| CodecError(error.to_string()))?;
    Ok(bytes)
}

/// A value from CBOR. Bytes after it are an error: they are a sign of another format.
pub fn decode<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, CodecError> {
    let value = ciborium::from_reader(&mut bytes).map_err(|error| CodecError(error.to_string()))?;
    if bytes.is_empty() { Ok(value) } else { Err(CodecError(format!("{} bytes left over", bytes.len()))) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn trailing_and_truncated_bytes_are_refused() {
        let bytes = encode(&("key", 7u64)).unwrap();
        assert_eq!(decode::<(String, u64)>(&bytes).unwrap(), ("key".into(), 7));
        assert!(decode::<(String, u64)>(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode::<(String, u64)>(&[bytes, vec![0]].concat()).is_err());
    }
}
