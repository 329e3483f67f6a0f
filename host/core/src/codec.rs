//! CBOR for control messages between nodes and for a node's records on disk (D5).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes do not decode to the expected message, or a message cannot be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid message: {0}")]
pub struct CodecError(String);

impl CodecError {
    /// Return the error for bytes whose checksum does not match.
    pub fn checksum() -> Self {
        Self("its checksum does not match".into())
    }
}

/// Encode a value as CBOR.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|error| CodecError(error.to_string()))?;
    Ok(bytes)
}

/// Decode a value from CBOR. Bytes after the value are an error: they are a sign of another format.
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
