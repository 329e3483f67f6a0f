//! Conversion of text and file contents to typed values, and of values to text for people.
//!
//! A word must not change silently: for a parameter of type `any`, a word becomes a number, `true` or `false`
//! only if that value prints as the same word. Otherwise it is text.

use std::borrow::Cow;

use ciborium::Value;

use super::cddl::Type;
use super::document::document;
use super::json::{from_json, to_json};

/// An argument that does not have the type of its parameter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {wanted}{hint}")]
pub struct BadValue {
    /// The text that was typed, cut to 60 characters.
    pub given: String,
    /// The type in CDDL, or a description of it.
    pub wanted: String,
    /// A hint how to type such a value. It starts with a separator, or is empty.
    pub hint: String,
}

impl BadValue {
    fn new(given: &str, ty: &Type, hint: &str) -> Self {
        Self { given: cut(given), wanted: ty.to_string(), hint: hint.to_owned() }
    }
}

/// Convert a word of the command line to a value of a parameter's type.
///
/// # Errors
/// The word has no such value, or none that keeps it as it was typed. The error describes how to type such a value.
pub fn from_text(ty: &Type, text: &str) -> Result<Value, BadValue> {
    let bad = |hint: &str| Err(BadValue::new(text, ty, hint));
    match ty {
        Type::Text => Ok(Value::Text(text.to_owned())),
        Type::Bytes => match text.strip_prefix("0x").map(hex) {
            Some(Some(bytes)) => Ok(Value::Bytes(bytes)),
            Some(None) => bad(": 0x must be followed by pairs of hex digits"),
            None => bad(": bytes are typed 0x0aff, or @FILE for the contents of a file"),
        },
        Type::Int | Type::Uint => match text.parse::<i128>().ok().and_then(|number| number.try_into().ok()) {
            Some(number) if ty.admits(&Value::Integer(number)) => Ok(Value::Integer(number)),
            _ => bad(""),
        },
        Type::Float => match text.parse::<f64>() {
            Ok(number) if !overflows(text, number) => Ok(Value::Float(number)),
            Ok(_) => bad(": it is beyond what a float can hold"),
            Err(_) => bad(""),
        },
        Type::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => bad(": write true or false"),
        },
        Type::Null => {
            if text == "null" {
                Ok(Value::Null)
            } else {
                bad("")
            }
        }
        Type::Any => of_any(text),
        Type::Array(_) | Type::Map(_) => match document(text, mentions_any(ty)) {
            Some(Ok(json)) => match fit(ty, from_json(&json)) {
                value if ty.admits(&value) => Ok(value),
                _ => bad(": write it as JSON"),
            },
            Some(Err(why)) => bad(&format!(": {why}")),
            None => bad(": write it as JSON"),
        },
        Type::Choice(types) => {
            choose(types, text, |ty| from_text(ty, text)).ok_or_else(|| BadValue::new(text, ty, ""))
        }
        Type::Literal(Value::Text(word)) if word == text => Ok(Value::Text(word.clone())),
        Type::Literal(Value::Text(_)) => bad(""),
        Type::Literal(literal) if prints_as(literal, text) => Ok(literal.clone()),
        Type::Literal(_) => bad(""),
    }
}

/// Convert the contents of a file to a value of a parameter's type. For `bytes` and `text` the contents are
/// the value; for `any` they are read like a word, or taken as bytes if they are not UTF-8. For the other
/// types one newline at the end of the file is ignored.
///
/// # Errors
/// The contents have no such value, or none that keeps them, as for [`from_text`].
pub fn from_contents(ty: &Type, contents: &[u8]) -> Result<Value, BadValue> {
    let text = std::str::from_utf8(contents);
    let line = text.map(without_newline);
    match (ty, text, line) {
        (Type::Bytes, ..) => Ok(Value::Bytes(contents.to_owned())),
        (Type::Any, Err(_), _) => Ok(Value::Bytes(contents.to_owned())),
        (Type::Text | Type::Any, Ok(text), _) => from_text(ty, text),
        (Type::Choice(types), _, line) => {
            choose(types, line.unwrap_or_default(), |ty| from_contents(ty, contents))
                .ok_or_else(|| BadValue::new(&String::from_utf8_lossy(contents), ty, ""))
        }
        (_, _, Ok(line)) => from_text(ty, line),
        (_, _, Err(_)) => {
            let hint = ": the file is not UTF-8 text";
            Err(BadValue::new(&String::from_utf8_lossy(contents), ty, hint))
        }
    }
}

fn without_newline(text: &str) -> &str {
    let line = text.strip_suffix('\n').unwrap_or(text);
    line.strip_suffix('\r').unwrap_or(line)
}

/// Convert a word for a parameter of type `any`: JSON for arrays and objects, else a value that prints as the
/// word, else text.
fn of_any(text: &str) -> Result<Value, BadValue> {
    let own = || Value::Text(text.to_owned());
    match text.trim_start().bytes().next() {
        Some(b'[' | b'{') => match document(text, true) {
            Some(Ok(json)) => Ok(from_json(&json)),
            Some(Err(hint)) => Err(BadValue {
                given: cut(text),
                wanted: "JSON that can be stored unchanged".to_owned(),
                hint: format!(": {hint}"),
            }),
            None => Ok(own()),
        },
        // A word in quotation marks, such as "42", is always text.
        Some(b'"') if text.starts_with('"') && text.ends_with('"') => {
            Ok(serde_json::from_str(text).map_or_else(|_| own(), Value::Text))
        }
        _ => {
            let value = serde_json::from_str(text).map(|json| from_json(&json));
            // Null is shown like a missing value, so the word `null` stays text.
            let same = value.ok().filter(|value| !value.is_null() && prints_as(value, text));
            Ok(same.unwrap_or_else(own))
        }
    }
}

/// Return the value of the first type that takes the text. `any`, and numbers that print differently, are
/// used only if no other type does.
fn choose(types: &[Type], text: &str, read: impl Fn(&Type) -> Result<Value, BadValue>) -> Option<Value> {
    let (any, plain): (Vec<&Type>, Vec<&Type>) = types.iter().partition(|ty| **ty == Type::Any);
    let mut changed = None;
    for ty in plain.into_iter().chain(any) {
        match read(ty) {
            Ok(value @ (Value::Integer(_) | Value::Float(_))) if !prints_as(&value, text) => {
                changed.get_or_insert(value);
            }
            Ok(value) => return Some(value),
            Err(_) => {}
        }
    }
    changed
}

fn prints_as(value: &Value, text: &str) -> bool {
    let printed = to_json(value).to_string();
    printed == text
}

/// Return true if a finite number in the text became infinite, or one other than zero became zero.
fn overflows(text: &str, number: f64) -> bool {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    match number {
        number if number.is_infinite() => text.bytes().any(|byte| byte.is_ascii_digit()),
        0.0 => mantissa.bytes().any(|byte| (b'1'..=b'9').contains(&byte)),
        _ => false,
    }
}

/// Return true if the type has a part of type `any`.
fn mentions_any(ty: &Type) -> bool {
    match ty {
        Type::Any => true,
        Type::Array(item) | Type::Map(item) => mentions_any(item),
        Type::Choice(types) => types.iter().any(mentions_any),
        _ => false,
    }
}

/// Convert integers to floats where the type expects floats, because JSON has only one kind of number.
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

/// Decode pairs of hex digits; `None` if the text is anything else.
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

/// Format a value for people: strings without quotation marks, null as `not_found`, everything else as JSON.
pub fn to_text<'a>(value: &'a Value, reply: &Type) -> Cow<'a, str> {
    match value {
        Value::Text(text) => text.as_str().into(),
        // A command whose reply type is null has no value that could be missing.
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
    fn words_become_values_of_the_parameters_type() {
        for (ty, word, value) in [
            ("text", "42", text("42")),
            ("any", "v1", text("v1")),
            ("any", "42", int(42)),
            ("any", "\"42\"", text("42")),
            ("any", "true", Value::Bool(true)),
            ("any", "-1", int(-1)),
            ("any", "1.5", Value::Float(1.5)),
            ("any / null", "null", Value::Null),
            ("any", "[1, 2.50]", Value::Array(vec![int(1), Value::Float(2.5)])),
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
            ("int / text", "007", text("007")),
            ("int / float", "1.10", Value::Float(1.1)),
            ("any / bytes", "0x00", Value::Bytes(vec![0])),
            ("int / text", "seven", text("seven")),
            ("\"on\" / \"off\"", "off", text("off")),
            ("7", "7", int(7)),
        ] {
            assert_eq!(typed(ty, word), Ok(value), "{ty}: {word}");
        }
    }

    #[test]
    fn words_of_another_type_are_rejected_with_a_hint() {
        for (ty, word, says) in [
            ("uint", "-1", "not uint"),
            ("int", "1.5", "not int"),
            ("int", "340282366920938463463374607431768211456", "not int"),
            ("bool", "yes", "true or false"),
            ("bytes", "abc", "@FILE"),
            ("bytes", "0xabc", "hex digits"),
            ("bytes", "0x+1", "hex digits"),
            ("bytes", "@file", "@FILE"),
            ("float", "1e999", "beyond what a float"),
            ("float", "1e-999", "beyond what a float"),
            ("[* int]", "1", "JSON"),
            ("[* int]", "[\"a\"]", "JSON"),
            ("[* int]", "[12345678901234567890123]", "JSON"),
            ("[* any]", "[12345678901234567890123]", "12345678901234567890123"),
            ("any", "{\"a\": [0.1000000000000000055]}", "0.1000000000000000055"),
            ("any", "{\"a\": 1, \"b\": {\"c\": 1, \"c\": 2}}", "\"c\" occurs in it twice"),
            ("{* text => int}", "{\"a\": 1, \"a\": 2}", "twice"),
            ("\"on\" / \"off\"", "maybe", r#""on" / "off""#),
        ] {
            let error = typed(ty, word).unwrap_err().to_string();
            assert!(error.contains(says), "{ty}: {word}: {error}");
        }
    }

    #[test]
    fn a_word_for_type_any_is_kept_unchanged() {
        for word in [
            "1.10",
            "1e3",
            "1E3",
            "12345678901234567890123",
            "18446744073709551616",
            "0.1000000000000000055",
            "1e999",
            "-0",
            "007",
            "+5",
            " 5 ",
            "5\n",
            " true",
            "null",
            "NaN",
            "\"half",
            "{half",
            "",
        ] {
            assert_eq!(typed("any", word), Ok(text(word)), "{word}");
        }
    }

    #[test]
    fn file_contents_become_values_of_the_parameters_type() {
        let contents = |ty: &str, contents: &[u8]| from_contents(&Type::parse(ty), contents);
        for (ty, given, value) in [
            ("bytes", &b"\xff\n"[..], Value::Bytes(vec![255, 10])),
            ("text", b"a\n", text("a\n")),
            ("any", b"v1\n", text("v1\n")),
            ("any", b"\xff", Value::Bytes(vec![255])),
            ("any", b"[1]\n", Value::Array(vec![int(1)])),
            ("int", b"7\n", int(7)),
            ("bool", b"true\r\n", Value::Bool(true)),
            ("[* int]", b"[1,\n2]\n", Value::Array(vec![int(1), int(2)])),
            ("int / text", b"7", int(7)),
            ("int / text", b"007", text("007")),
            ("text / bytes", b"\xff", Value::Bytes(vec![255])),
        ] {
            assert_eq!(contents(ty, given), Ok(value), "{ty}: {given:?}");
        }
        assert!(contents("text", b"\xff").unwrap_err().to_string().contains("UTF-8"));
        assert!(contents("int", b"7\n\n").is_err());
    }

    #[test]
    fn text_output_shows_bare_strings_and_not_found() {
        assert_eq!(to_text(&text("v1"), &Type::Any), "v1");
        assert_eq!(to_text(&Value::Null, &Type::Any), "not_found");
        assert_eq!(to_text(&Value::Null, &Type::Null), "null");
        assert_eq!(to_text(&Value::Array(vec![text("pong"), int(7)]), &Type::Any), r#"["pong",7]"#);
    }

    proptest! {
        #[test]
        fn every_value_of_a_word_is_admitted_by_its_type(
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
        fn a_word_for_type_any_is_shown_unchanged(word in "[-+0-9.eE \\n]{0,12}|[a-z \\n]{0,6}|.{0,24}") {
            let json = serde_json::from_str::<serde_json::Value>(&word);
            let plain = !json.is_ok_and(|json| json.is_string() || json.is_array() || json.is_object());
            if plain {
                let value = typed("any", &word).unwrap();
                prop_assert_eq!(to_text(&value, &Type::Any), word);
            }
        }

        #[test]
        fn any_word_is_valid_text(word in ".{0,64}") {
            prop_assert_eq!(from_text(&Type::Text, &word), Ok(Value::Text(word)));
        }

        #[test]
        fn integers_and_bytes_survive_a_round_trip(number: i64, bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            prop_assert_eq!(typed("int", &number.to_string()), Ok(int(number)));
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(typed("bytes", &format!("0x{digits}")), Ok(Value::Bytes(bytes)));
        }
    }
}
