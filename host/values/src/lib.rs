//! Conversions of values between text, JSON and CBOR.
//!
//! The arguments of a command are text on the command line, typed by the guest's description, and CBOR on the
//! wire; its reply is CBOR, shown as JSON or as text. A value that JSON cannot express becomes an object with
//! one key: bytes `{"$bytes": base64}`, floats that are not finite `{"$float": "NaN"}`, integers beyond 64
//! bits `{"$int": "..."}`, tags `{"$tag": [n, value]}`.

mod base64;
mod cddl;
mod document;
mod json;
mod text;

pub use cddl::Type;
pub use json::to_json;
pub use text::hex;
pub use text::{BadValue, from_contents, from_text, to_text};
