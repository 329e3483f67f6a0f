//! The trait that `#[derive(Commands)]` implements, and the decoding of arguments.

use serde::de::DeserializeOwned;

use crate::reply::from_cbor;
use crate::{CommandInfo, Failure, Value};

/// Cargo's metadata of the crate that defines the command enum.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// `CARGO_PKG_NAME`: the module's name, unless [`Vnode::name`](crate::Vnode::name) returns another.
    pub name: &'static str,
    /// `CARGO_PKG_VERSION`: the module's version, unless [`Vnode::version`](crate::Vnode::version) returns
    /// another.
    pub version: &'static str,
    /// `CARGO_PKG_DESCRIPTION`: the module's documentation.
    pub doc: &'static str,
}

/// The commands of a module. Derive it for an enum with one variant for each command.
pub trait Commands: Sized {
    /// Metadata of the crate that defines the enum.
    const PACKAGE: Package;

    /// Return the descriptions of the commands.
    fn describe() -> Vec<CommandInfo>;

    /// Decode a command by its name, with arguments from a CBOR map. Names in the map that the command does
    /// not have are ignored.
    ///
    /// # Errors
    /// `UnknownCommand`, or `BadArguments` with the name of the parameter.
    fn decode(command: &str, args: &[u8]) -> Result<Self, Failure>;
}

/// Checks one argument alone, to find the one of several that does not fit.
pub type Check = fn(Value) -> Result<(), String>;

/// Check that a value can be deserialized as a `T`.
///
/// # Errors
/// A message that says why it cannot.
pub fn check<T: DeserializeOwned>(value: Value) -> Result<(), String> {
    value.deserialized::<T>().map(drop).map_err(|error| error.to_string())
}

/// Decode a command's arguments from a CBOR map; no bytes at all count as an empty map.
///
/// # Errors
/// `BadArguments` with the name of the parameter that is missing or does not fit.
pub fn decode_args<T: DeserializeOwned>(args: &[u8], checks: &[(&str, Check)]) -> Result<T, Failure> {
    const EMPTY_MAP: &[u8] = &[0xa0];
    let args = if args.is_empty() { EMPTY_MAP } else { args };
    from_cbor(args).map_err(|error| Failure::BadArguments(explain(args, error, checks)))
}

/// Find the parameter that caused an error. This runs only after decoding has failed, so that without an
/// error the bytes are decoded straight into the command.
fn explain(args: &[u8], error: String, checks: &[(&str, Check)]) -> String {
    let Ok(Value::Map(entries)) = from_cbor::<Value>(args) else {
        return format!("not a CBOR map from names to values: {error}");
    };
    for (name, value) in entries {
        let Value::Text(name) = name else {
            return "a parameter's name is not text".to_owned();
        };
        if let Some((_, check)) = checks.iter().find(|(known, _)| *known == name) {
            if let Err(wrong) = check(value) {
                return format!("`{name}`: {wrong}");
            }
        }
    }
    error
}
