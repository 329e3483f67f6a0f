//! Typed JSON documents, of which no part may be lost silently.

use std::collections::HashSet;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use super::json::{from_json, to_json};

/// Parse a text as JSON. Return `None` if it is not JSON, or an error message if a part of it could not be
/// kept. With `exact`, numbers must keep their value.
pub(super) fn document(text: &str, exact: bool) -> Option<Result<Json, String>> {
    let json: Json = serde_json::from_str(text).ok()?;
    if let Err(error) = serde_json::from_str::<NoTwins>(text) {
        return Some(Err(error.to_string()));
    }
    let changed = numbers(text).find_map(|number| Some((number, becomes(number)?)));
    Some(match changed.filter(|_| exact) {
        Some((number, other)) => Err(format!(
            "the number {number} in it would become {other}; write it in quotation marks, as text"
        )),
        None => Ok(json),
    })
}

/// Return the numbers in a text that is JSON.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            rest = &rest[at..];
            if rest.starts_with('"') {
                rest = &rest[string_length(rest)..];
                continue;
            }
            let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(rest.len());
            let number = &rest[..end];
            rest = &rest[end..];
            return Some(number);
        }
    })
}

/// Return the length in bytes of the string at the start of a text, including both quotation marks.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Return the number that would be stored, if it differs from the one in the text.
fn becomes(number: &str) -> Option<String> {
    let kept = to_json(&from_json(&serde_json::from_str(number).ok()?)).to_string();
    (decimal(number) != decimal(&kept)).then_some(kept)
}

/// Split a number into sign, significant digits and the power of ten of the last of them; zero has no digits.
fn decimal(number: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{}{fraction}", whole.trim_start_matches('-'));
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return (number.starts_with('-'), String::new(), 0);
    }
    let zeros = digits.len() - digits.trim_end_matches('0').len();
    let place = exponent.parse::<i64>().unwrap_or(i64::MAX);
    let place = place.saturating_add(zeros as i64).saturating_sub(fraction.len() as i64);
    (number.starts_with('-'), significant.to_owned(), place)
}

/// JSON in which no object has a key twice, because the first of two values would be lost.
struct NoTwins;

impl<'de> Deserialize<'de> for NoTwins {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(Look)
    }
}

struct Look;

impl<'de> Visitor<'de> for Look {
    type Value = NoTwins;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NoTwins, A::Error> {
        let mut keys = HashSet::new();
        while let Some((key, NoTwins)) = map.next_entry::<String, NoTwins>()? {
            if keys.contains(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} occurs in it twice")));
            }
            keys.insert(key);
        }
        Ok(NoTwins)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<NoTwins, A::Error> {
        while list.next_element::<NoTwins>()?.is_some() {}
        Ok(NoTwins)
    }

    fn visit_bool<E>(self, _: bool) -> Result<NoTwins, E> {
        Ok(NoTwins)
    }

    fn visit_i64<E>(self, _: i64) -> Result<NoTwins, E> {
        Ok(NoTwins)
    }

    fn visit_u64<E>(self, _: u64) -> Result<NoTwins, E> {
        Ok(NoTwins)
    }

    fn visit_f64<E>(self, _: f64) -> Result<NoTwins, E> {
        Ok(NoTwins)
    }

    fn visit_str<E>(self, _: &str) -> Result<NoTwins, E> {
        Ok(NoTwins)
    }

    fn visit_unit<E>(self) -> Result<NoTwins, E> {
        Ok(NoTwins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_outside_of_strings_are_found() {
        let text = r#"{"a1\"2": [-1.5e+3, 7], "b": "8", "c": {"d\\": 0}}"#;
        assert_eq!(numbers(text).collect::<Vec<_>>(), ["-1.5e+3", "7", "0"]);
    }

    #[test]
    fn a_number_is_the_same_however_it_is_written() {
        for (one, other) in [("1.10", "1.1"), ("1e3", "1000.0"), ("-0.050", "-5e-2"), ("0", "0.0e9")] {
            assert_eq!(decimal(one), decimal(other));
        }
        for (one, other) in [("1.1", "1.2"), ("-1", "1"), ("10", "1"), ("0.1000000000000000055", "0.1")] {
            assert_ne!(decimal(one), decimal(other));
        }
    }
}
