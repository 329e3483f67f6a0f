//! The reply of a command: CBOR of any value that serde can serialize, or a [`Failure`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Failure, Refusal, Value};

/// The encoded reply of a command. [`reply`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply(pub(crate) Vec<u8>);

impl Reply {
    /// Create a reply from CBOR bytes. The host refuses it if they are not valid CBOR.
    #[must_use]
    pub fn from_cbor(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Return the CBOR bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Encode the reply of a command: any value that serde can serialize; `None` is null.
///
/// # Errors
/// `refused` with code `unserializable-reply`, if the value's own `Serialize` fails.
pub fn reply<T: Serialize>(value: T) -> Result<Reply, Failure> {
    to_cbor(&value).map(Reply).map_err(|error| Failure::refused("unserializable-reply", error))
}

impl Failure {
    /// Create the module's own refusal: a stable code, lower-case with dashes, and a message for people.
    pub fn refused(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Refused(Refusal { code: code.into(), message: message.into(), detail: None })
    }

    /// Create a refusal with details for programs.
    pub fn refused_with(code: impl Into<String>, message: impl Into<String>, detail: &Value) -> Self {
        Self::Refused(Refusal { code: code.into(), message: message.into(), detail: to_cbor(detail).ok() })
    }
}

pub(crate) fn to_cbor<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(64);
    match ciborium::into_writer(value, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(ciborium::ser::Error::Value(message)) => Err(message),
        // Writing to memory does not fail.
        Err(ciborium::ser::Error::Io(error)) => Err(error.to_string()),
    }
}

/// Decode one CBOR value with nothing after it.
pub(crate) fn from_cbor<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, String> {
    use ciborium::de::Error;
    let value = ciborium::from_reader(&mut bytes).map_err(|error| match error {
        Error::Semantic(_, message) => message,
        Error::Io(_) => "the CBOR is truncated".to_owned(),
        Error::Syntax(offset) => format!("invalid CBOR at byte {offset}"),
        Error::RecursionLimitExceeded => "nested too deep".to_owned(),
    })?;
    if bytes.is_empty() { Ok(value) } else { Err(format!("{} bytes after the CBOR value", bytes.len())) }
}
