//! Commands as a type: what `#[derive(Commands)]` implements, and how arguments are decoded.

use serde::de::DeserializeOwned;

use crate::reply::from_cbor;
use crate::{CommandInfo, Failure, Value};

/// What Cargo knows of the crate that a command enum stands in.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// `CARGO_PKG_NAME`: the module's name, unless it says otherwise.
    pub name: &'static str,
    /// `CARGO_PKG_VERSION`.
    pub version: &'static str,
    /// `CARGO_PKG_DESCRIPTION`.
    pub doc: &'static str,
}

/// The commands of a module. Derived, from an enum with one variant for each command.
pub trait Commands: Sized {
    /// The crate that the enum stands in.
    const PACKAGE: Package;

    /// What the module says of its commands.
    fn describe() -> Vec<CommandInfo>;

    /// The command of that name, with arguments from a CBOR map. Names in the map that the
    /// command does not know are ignored.
    ///
    /// # Errors
    /// `UnknownCommand`, or `BadArguments` that names the parameter.
    fn decode(command: &str, args: &[u8]) -> Result<Self, Failure>;
}

/// Tries one argument alone, to find out which of several did not fit.
pub type Check = fn(Value) -> Result<(), String>;

/// Tries a value as a `T`.
///
/// # Errors
/// What is wrong with the value.
pub fn check<T: DeserializeOwned>(value: Value) -> Result<(), String> {
    value.deserialized::<T>().map(drop).map_err(|error| error.to_string())
}

/// A command's arguments from a CBOR map; no bytes at all are an empty one.
///
/// # Errors
/// `BadArguments` that names the parameter which is missing or does not fit.
pub fn decode_args<T: DeserializeOwned>(args: &[u8], checks: &[(&str, Check)]) -> Result<T, Failure> {
    const EMPTY_MAP: &[u8] = &[0xa0];
    let args = if args.is_empty() { EMPTY_MAP } else { args };
    from_cbor(args).map_err(|error| Failure::BadArguments(explain(args, error, checks)))
}

/// Names the parameter that an error is about: done only once decoding has failed, so that the
/// way without errors decodes straight into the command.
fn explain(args: &[u8], error: String, checks: &[(&str, Check)]) -> String {
    let Ok(Value::Map(entries)) = from_cbor::<Value>(args) else {
        return format!("not a CBOR map from names to values: {error}");
    };
    for (name, value) in entries {
        let Value::Text(name) = name else {
            return "a parameter's name is not a text".to_owned();
        };
        if let Some((_, check)) = checks.iter().find(|(known, _)| *known == name) {
            if let Err(wrong) = check(value) {
                return format!("`{name}`: {wrong}");
            }
        }
    }
    error
}
