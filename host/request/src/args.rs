//! Extracts the routing key from a command's arguments, and limits the length of both.

use annulus_core::request::{ErrorCode, MAX_ARGS_BYTES, RequestError};
use bytes::Bytes;
use ciborium::Value;

use super::map_scan;

/// Maximum length of a routing key, in bytes. Kept small, because every request and every item carries the key.
const MAX_KEY_BYTES: usize = 64 << 10;

/// Reject arguments that are too long for a frame to another node, even if this node owns the partition.
pub(super) fn check_length(args: &[u8]) -> Result<(), RequestError> {
    if args.len() > MAX_ARGS_BYTES {
        let message = format!("the arguments are {} bytes; the limit is {MAX_ARGS_BYTES}", args.len());
        return Err(RequestError::not_applied(ErrorCode::ValueTooLarge, message));
    }
    Ok(())
}

/// Return the routing key, which is the value of the parameter `param`: text as UTF-8, bytes unchanged, and an
/// integer in decimal.
///
/// # Errors
/// If the arguments are not a CBOR map, the parameter is missing or of another type, or the key is too long.
pub(super) fn routing_key(args: &[u8], param: &str) -> Result<Bytes, RequestError> {
    let key = match map_scan::key_of_entry(args, param) {
        Some(key) => Bytes::copy_from_slice(&key),
        // Fall back to the full parser, which accepts all of CBOR and reports why it finds no key.
        None => parsed_key(args, param)?,
    };
    if key.len() > MAX_KEY_BYTES {
        let message = format!("the key is {} bytes; the limit is {MAX_KEY_BYTES}", key.len());
        return Err(RequestError::not_applied(ErrorCode::ValueTooLarge, message));
    }
    Ok(key)
}

/// Return the routing key by parsing all the arguments.
fn parsed_key(args: &[u8], param: &str) -> Result<Bytes, RequestError> {
    let bad = |message: String| RequestError::not_applied(ErrorCode::BadArguments, message);
    let map: Value = ciborium::from_reader(args)
        .map_err(|error| bad(format!("the arguments are not valid CBOR: {error}")))?;
    let Value::Map(map) = map else { return Err(bad("the arguments are not a CBOR map".to_owned())) };
    let value = map.into_iter().find(|(name, _)| name.as_text() == Some(param)).map(|(_, value)| value);
    match value {
        None => Err(bad(format!("the parameter `{param}` is missing; it is the routing key of the command"))),
        Some(Value::Text(text)) => Ok(text.into()),
        Some(Value::Bytes(bytes)) => Ok(bytes.into()),
        Some(Value::Integer(number)) => Ok(i128::from(number).to_string().into()),
        Some(_) => Err(bad(format!(
            "the parameter `{param}` is the routing key: it must be text, bytes or an integer"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_bytes_make_the_arguments_panic() {
        use annulus_core::junk::{Target, attack, done};

        let valid = vec![args("key".into()), args(Value::Bytes(vec![1])), args(7.into())];
        attack(&[Target { name: "arguments", valid, decode: |bytes| done(routing_key(bytes, "k")) }]);
    }

    fn args(value: Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(&Value::Map(vec![("k".into(), value)]), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn text_bytes_and_integers_become_routing_keys() {
        assert_eq!(routing_key(&args("é".into()), "k").unwrap(), "é".as_bytes());
        assert_eq!(routing_key(&args(Value::Bytes(vec![0, 255])), "k").unwrap(), &[0u8, 255][..]);
        assert_eq!(routing_key(&args((-12).into()), "k").unwrap(), &b"-12"[..]);
    }

    #[test]
    fn the_scan_finds_the_key_that_the_parser_finds() {
        let entry = |name: &str, value: Value| (Value::from(name), value);
        let nested = Value::Array(vec![Value::Null, 1.5.into(), Value::Map(vec![entry("k", "no".into())])]);
        let samples = [
            vec![entry("k", "text".into())],
            vec![entry("v", nested), entry("k", vec![1u8, 2].into()), entry("k", "second".into())],
            vec![(7.into(), true.into()), entry("k", u64::MAX.into()), entry("v", "x".repeat(300).into())],
            vec![entry("k", (-70_000).into()), entry("f", f64::MAX.into()), (Value::Null, Value::from("k"))],
        ];
        let mut found = 0;
        for sample in samples {
            let mut bytes = Vec::new();
            ciborium::into_writer(&Value::Map(sample), &mut bytes).unwrap();
            assert!(map_scan::key_of_entry(&bytes, "k").is_some());
            assert!(map_scan::key_of_entry(&bytes, "other").is_none());
            // With any single byte replaced, or the input truncated, the scan finds the parser's key or no key.
            for at in 0..bytes.len() {
                for byte in 0..=255 {
                    let mut changed = bytes.clone();
                    changed[at] = byte;
                    for changed in [&changed[..], &changed[..=at]] {
                        if let Some(key) = map_scan::key_of_entry(changed, "k") {
                            assert_eq!(parsed_key(changed, "k").unwrap(), *key, "{changed:02x?}");
                            found += 1;
                        }
                    }
                }
            }
        }
        assert!(found > 1000, "{found}");
    }

    #[test]
    fn the_longest_arguments_and_the_longest_reply_fit_a_frame() {
        use annulus_core::request::MAX_REPLY_BYTES;
        use annulus_transport::limits::MAX_FRAME;
        // Allowance for names, numbers and headers.
        let rest = 16 << 10;
        assert!(MAX_ARGS_BYTES + MAX_KEY_BYTES + rest <= MAX_FRAME);
        assert!(MAX_REPLY_BYTES + rest <= MAX_FRAME);
        assert!(check_length(&vec![0; MAX_ARGS_BYTES]).is_ok());
        let error = check_length(&vec![0; MAX_ARGS_BYTES + 1]).unwrap_err();
        assert_eq!(error.code, ErrorCode::ValueTooLarge);
    }

    #[test]
    fn a_missing_or_invalid_routing_key_is_an_error() {
        for args in
            [args(Value::Null), args(1.5.into()), vec![0xff], Vec::new(), args(vec![0u8; 70_000].into())]
        {
            assert!(routing_key(&args, "k").is_err());
        }
        assert!(routing_key(&args("v".into()), "other").unwrap_err().message.contains("other"));
    }
}
