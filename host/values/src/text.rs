//! Text as typed values, and values as text for people.

use std::borrow::Cow;
use std::path::Path;

use ciborium::Value;

use super::cddl::Type;
use super::json::{from_json, to_json};

/// An argument that is not of its parameter's type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {wanted}{hint}")]
pub struct BadValue {
    /// What was typed, cut to 60 characters.
    pub given: String,
    /// The type.
    pub wanted: String,
    /// How it is typed; begins with a separator, or is empty.
    pub hint: String,
}

/// Largest file that `@file` reads, in bytes: more would not fit a request.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The value that a word of the command line means for a parameter of this type.
///
/// # Errors
/// When it means none; the error says how such a value is typed.
pub fn from_text(ty: &Type, text: &str) -> Result<Value, BadValue> {
    let bad = |hint: &str| Err(BadValue { given: cut(text), wanted: ty.to_string(), hint: hint.to_owned() });
    match ty {
        Type::Text => Ok(Value::Text(text.to_owned())),
        Type::Bytes => match bytes(text) {
            Ok(bytes) => Ok(Value::Bytes(bytes)),
            Err(hint) => bad(&hint),
        },
        Type::Int | Type::Uint => match text.parse::<i128>().ok().and_then(|number| number.try_into().ok()) {
            Some(number) if ty.admits(&Value::Integer(number)) => Ok(Value::Integer(number)),
            _ => bad(""),
        },
        Type::Float => match text.parse::<f64>() {
            Ok(number) => Ok(Value::Float(number)),
            Err(_) => bad(""),
        },
        Type::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => bad(": say true or false"),
        },
        Type::Null => {
            if text == "null" {
                Ok(Value::Null)
            } else {
                bad("")
            }
        }
        Type::Any => Ok(match serde_json::from_str(text) {
            Ok(json) => from_json(&json),
            Err(_) => Value::Text(text.to_owned()),
        }),
        Type::Array(_) | Type::Map(_) => {
            let value = serde_json::from_str(text).map(|json| fit(ty, from_json(&json)));
            match value {
                Ok(value) if ty.admits(&value) => Ok(value),
                _ => bad(": say it as JSON"),
            }
        }
        Type::Choice(types) => match types.iter().find_map(|ty| from_text(ty, text).ok()) {
            Some(value) => Ok(value),
            None => bad(""),
        },
        Type::Literal(Value::Text(word)) if word == text => Ok(Value::Text(word.clone())),
        Type::Literal(Value::Text(_)) => bad(""),
        Type::Literal(literal) => match serde_json::from_str(text).map(|json| from_json(&json)) {
            Ok(value) if value == *literal => Ok(value),
            _ => bad(""),
        },
    }
}

/// JSON has one kind of number: what stands where a float belongs is one.
fn fit(ty: &Type, value: Value) -> Value {
    match (ty, value) {
        (Type::Float, Value::Integer(number)) => Value::Float(i128::from(number) as f64),
        (Type::Array(item), Value::Array(values)) => {
            Value::Array(values.into_iter().map(|value| fit(item, value)).collect())
        }
        (Type::Map(item), Value::Map(entries)) => {
            Value::Map(entries.into_iter().map(|(key, value)| (key, fit(item, value))).collect())
        }
        (Type::Choice(types), value) if !ty.admits(&value) => types
            .iter()
            .map(|ty| (ty, fit(ty, value.clone())))
            .find_map(|(ty, fitted)| ty.admits(&fitted).then_some(fitted))
            .unwrap_or(value),
        (_, value) => value,
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    if let Some(digits) = text.strip_prefix("0x") {
        return hex(digits).ok_or_else(|| ": after 0x stand pairs of hex digits".to_owned());
    }
    let Some(path) = text.strip_prefix('@') else {
        return Err(": bytes are typed 0x0aff, or @FILE for what is in a file".to_owned());
    };
    let read = || -> std::io::Result<Vec<u8>> {
        let length = std::fs::metadata(path)?.len();
        if length > MAX_FILE_BYTES {
            return Err(std::io::Error::other(format!("{length} bytes; the limit is {MAX_FILE_BYTES}")));
        }
        std::fs::read(path)
    };
    read().map_err(|error| format!(": {}: {error}", Path::new(path).display()))
}

/// Pairs of hex digits as bytes.
pub fn hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    let pair = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).ok();
    if digits.contains('+') {
        return None;
    }
    (0..digits.len()).step_by(2).map(pair).collect()
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// A value for people: strings bare, a null that stands for a missing value `not_found`,
/// the rest as JSON.
pub fn to_text<'a>(value: &'a Value, reply: &Type) -> Cow<'a, str> {
    match value {
        Value::Text(text) => text.as_str().into(),
        // A command that promises null and nothing else says nothing by it.
        Value::Null if *reply == Type::Null => "null".into(),
        Value::Null => "not_found".into(),
        other => to_json(other).to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn typed(ty: &str, text: &str) -> Result<Value, BadValue> {
        from_text(&Type::parse(ty), text)
    }

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    fn int(number: i64) -> Value {
        Value::Integer(number.into())
    }

    #[test]
    fn words_become_values_of_their_parameters_type() {
        for (ty, word, value) in [
            ("text", "42", text("42")),
            ("any", "v1", text("v1")),
            ("any", "42", int(42)),
            ("any", "\"42\"", text("42")),
            ("any", "null", Value::Null),
            ("int", "-1", int(-1)),
            ("uint", "0", int(0)),
            ("float", "1", Value::Float(1.0)),
            ("bool", "true", Value::Bool(true)),
            ("bytes", "0x00ff", Value::Bytes(vec![0, 255])),
            ("bytes", "0x", Value::Bytes(vec![])),
            ("[* float]", "[1, 2.5]", Value::Array(vec![Value::Float(1.0), Value::Float(2.5)])),
            ("{* text => int}", "{\"a\":1}", Value::Map(vec![(text("a"), int(1))])),
            ("[* bytes]", "[{\"$bytes\":\"AA==\"}]", Value::Array(vec![Value::Bytes(vec![0])])),
            ("int / text", "7", int(7)),
            ("int / text", "seven", text("seven")),
            ("\"on\" / \"off\"", "off", text("off")),
            ("7", "7", int(7)),
        ] {
            assert_eq!(typed(ty, word), Ok(value), "{ty}: {word}");
        }
    }

    #[test]
    fn words_of_another_type_are_refused_with_how_to_say_it() {
        for (ty, word, says) in [
            ("uint", "-1", "not uint"),
            ("int", "1.5", "not int"),
            ("int", "340282366920938463463374607431768211456", "not int"),
            ("bool", "yes", "true or false"),
            ("bytes", "abc", "@FILE"),
            ("bytes", "0xabc", "hex digits"),
            ("bytes", "0x+1", "hex digits"),
            ("bytes", "@/nonexistent/file", "/nonexistent/file"),
            ("[* int]", "1", "JSON"),
            ("[* int]", "[\"a\"]", "JSON"),
            ("\"on\" / \"off\"", "maybe", r#""on" / "off""#),
        ] {
            let error = typed(ty, word).unwrap_err().to_string();
            assert!(error.contains(says), "{ty}: {word}: {error}");
        }
    }

    #[test]
    fn a_file_gives_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, [1, 2, 3]).unwrap();
        assert_eq!(typed("bytes", &format!("@{}", path.display())), Ok(Value::Bytes(vec![1, 2, 3])));
    }

    #[test]
    fn people_see_bare_strings_and_not_found() {
        assert_eq!(to_text(&text("v1"), &Type::Any), "v1");
        assert_eq!(to_text(&Value::Null, &Type::Any), "not_found");
        assert_eq!(to_text(&Value::Null, &Type::Null), "null");
        assert_eq!(to_text(&Value::Array(vec![text("pong"), int(7)]), &Type::Any), r#"["pong",7]"#);
    }

    proptest! {
        #[test]
        fn no_word_makes_a_value_that_its_type_does_not_admit(
            word in ".{0,24}",
            ty in prop_oneof![
                Just("text"), Just("bytes"), Just("int"), Just("uint"), Just("float"), Just("bool"), Just("null"),
                Just("any"), Just("[* int]"), Just("{* text => float}"), Just("uint / bool / \"x\""), Just("7"),
            ],
        ) {
            let ty = Type::parse(ty);
            if let Ok(value) = from_text(&ty, &word) {
                prop_assert!(ty.admits(&value));
            }
        }

        #[test]
        fn any_text_at_all_is_text(word in ".{0,64}") {
            prop_assert_eq!(from_text(&Type::Text, &word), Ok(Value::Text(word)));
        }

        #[test]
        fn integers_and_bytes_survive(number: i64, bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            prop_assert_eq!(typed("int", &number.to_string()), Ok(int(number)));
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(typed("bytes", &format!("0x{digits}")), Ok(Value::Bytes(bytes)));
        }
    }
}
