//! Conversion of CBOR to JSON and back.

use ciborium::Value;
use ciborium::value::Integer;
use serde_json::{Map, Value as Json, json};

use super::base64;

/// Convert a CBOR value to JSON. Every value can be converted; map keys that are not text become the text of
/// their JSON.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Text(text) => Json::String(text.clone()),
        Value::Bytes(bytes) => json!({ "$bytes": base64::encode(bytes) }),
        Value::Integer(number) => {
            let number = i128::from(*number);
            if let Ok(small) = i64::try_from(number) {
                small.into()
            } else if let Ok(large) = u64::try_from(number) {
                large.into()
            } else {
                json!({ "$int": number.to_string() })
            }
        }
        Value::Float(number) => match serde_json::Number::from_f64(*number) {
            Some(number) => Json::Number(number),
            None => json!({ "$float": number.to_string() }),
        },
        Value::Array(values) => values.iter().map(to_json).collect(),
        Value::Map(entries) => {
            let key = |key: &Value| match key {
                Value::Text(text) => text.clone(),
                other => to_json(other).to_string(),
            };
            entries.iter().map(|(k, v)| (key(k), to_json(v))).collect::<Map<_, _>>().into()
        }
        Value::Tag(tag, value) => json!({ "$tag": [tag, to_json(value)] }),
        // Later versions of the type may have more variants; all of today's are handled above.
        other => Json::String(format!("{other:?}")),
    }
}

/// Convert JSON to CBOR. An object that resembles one of the `$` objects but is not valid stays an object.
pub fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::String(text) => Value::Text(text.clone()),
        Json::Number(number) => {
            if let Some(number) = number.as_i64() {
                Value::Integer(number.into())
            } else if let Some(number) = number.as_u64() {
                Value::Integer(number.into())
            } else {
                Value::Float(number.as_f64().unwrap_or(f64::NAN))
            }
        }
        Json::Array(values) => Value::Array(values.iter().map(from_json).collect()),
        Json::Object(entries) => special(entries).unwrap_or_else(|| {
            Value::Map(entries.iter().map(|(k, v)| (Value::Text(k.clone()), from_json(v))).collect())
        }),
    }
}

fn special(entries: &Map<String, Json>) -> Option<Value> {
    let (key, value) = entries.iter().next().filter(|_| entries.len() == 1)?;
    match (key.as_str(), value) {
        ("$bytes", Json::String(text)) => base64::decode(text).map(Value::Bytes),
        ("$float", Json::String(text)) => {
            text.parse::<f64>().ok().filter(|number| !number.is_finite()).map(Value::Float)
        }
        ("$int", Json::String(text)) => {
            let number: i128 = text.parse().ok()?;
            Integer::try_from(number).ok().map(Value::Integer)
        }
        ("$tag", Json::Array(pair)) => match pair.as_slice() {
            [tag, value] => Some(Value::Tag(tag.as_u64()?, Box::new(from_json(value)))),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(|n| Value::Integer(n.into())),
            any::<u64>().prop_map(|n| Value::Integer(n.into())),
            Just(Value::Integer(Integer::try_from(-(1i128 << 64)).unwrap())),
            any::<f64>().prop_filter("a NaN equals nothing", |n| !n.is_nan()).prop_map(Value::Float),
            ".{0,12}".prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..12).prop_map(Value::Bytes),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                proptest::collection::btree_map("[a-z]{0,4}", inner.clone(), 0..6).prop_map(|map| {
                    Value::Map(map.into_iter().map(|(k, v)| (Value::Text(k), v)).collect())
                }),
                (any::<u64>(), inner).prop_map(|(tag, value)| Value::Tag(tag, Box::new(value))),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_survives_a_round_trip_through_json_text(value in values()) {
            let text = to_json(&value).to_string();
            let json: Json = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(from_json(&json), value);
        }
    }

    #[test]
    fn nothing_is_lost_at_the_edges() {
        assert_eq!(to_json(&Value::Bytes(vec![0, 255])).to_string(), r#"{"$bytes":"AP8="}"#);
        assert_eq!(to_json(&Value::Float(f64::NAN)).to_string(), r#"{"$float":"NaN"}"#);
        let map = Value::Map(vec![(Value::Integer(7.into()), Value::Text("x".into()))]);
        assert_eq!(to_json(&map).to_string(), r#"{"7":"x"}"#);
        let odd = json!({"$bytes": "not base64"});
        assert!(from_json(&odd).is_map());
    }
}
