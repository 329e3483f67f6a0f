//! A module's settings, as `init` gets them.

use serde::de::DeserializeOwned;

use crate::reply::from_cbor;
use crate::{Param, Value};

/// The settings of a deploy (`--set name=value`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config(Vec<(Value, Value)>);

impl Config {
    /// Decode settings from a CBOR map; no bytes at all count as an empty map.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        match from_cbor(bytes)? {
            Value::Map(entries) => Ok(Self(entries)),
            _ => Err("the configuration is not a CBOR map".to_owned()),
        }
    }

    /// Return one setting, or `None` if it was not given.
    ///
    /// # Errors
    /// The setting was given but is not a `T`. The message has its name and the reason.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let found = self.0.iter().find(|(key, _)| key.as_text() == Some(name));
        found
            .map(|(_, value)| value.deserialized().map_err(|error| format!("setting `{name}`: {error}")))
            .transpose()
    }
}

impl<const N: usize> From<[(&str, Value); N]> for Config {
    fn from(settings: [(&str, Value); N]) -> Self {
        Self(settings.into_iter().map(|(name, value)| (Value::from(name), value)).collect())
    }
}

impl Config {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        crate::reply::to_cbor(&Value::Map(self.0.clone()))
    }
}

impl Param {
    /// Describe a parameter or setting that must be given. `ty` is CDDL: `text`, `uint`, `[* text]`, ...
    pub fn required(name: &str, ty: &str, doc: &str) -> Self {
        Self { name: name.to_owned(), ty: ty.to_owned(), doc: doc.to_owned(), optional: false }
    }

    /// Describe a parameter or setting that may be left out.
    pub fn optional(name: &str, ty: &str, doc: &str) -> Self {
        Self { optional: true, ..Self::required(name, ty, doc) }
    }
}
