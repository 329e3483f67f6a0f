//! A module's settings, and the changes that an operator makes to them.

use std::collections::BTreeMap;

use ciborium::Value;

use crate::AdminError;
use annulus_values::{Type, from_text, to_text};
use annulus_wasm::Description;

/// Return the settings of the next release, as CBOR for `init`: the module's present settings, with the `set`
/// ones changed and the `unset` ones removed. Values get the types that the component declares.
///
/// # Errors
/// `bad-arguments` for a setting that the component does not know, that is given twice, that is both set and
/// unset, or whose text does not fit its type.
pub(super) fn merged(
    present: Option<&[u8]>,
    (set, unset): (&[(String, String)], &[String]),
    description: &Description,
) -> Result<Vec<u8>, AdminError> {
    let bad = |why: String| AdminError::not_applied("bad-arguments", why);
    let known = |name: &str| description.config.iter().find(|param| param.name == *name);
    let mut entries = present.map_or_else(Vec::new, entries);
    for name in unset {
        let before = entries.len();
        entries.retain(|(other, _)| other.as_text() != Some(name));
        if before == entries.len() && known(name).is_none() {
            return Err(bad(unknown(name, description)));
        }
    }
    for (at, (name, text)) in set.iter().enumerate() {
        let param = known(name).ok_or_else(|| bad(unknown(name, description)))?;
        if set.iter().take(at).any(|(other, _)| other == name) || unset.contains(name) {
            return Err(bad(format!("setting {name} is given twice")));
        }
        let value = from_text(&Type::parse(&param.ty), text)
            .map_err(|error| bad(format!("setting {name}: {error}")))?;
        entries.retain(|(other, _)| other.as_text() != Some(name));
        entries.push((Value::Text(name.clone()), value));
    }
    let left = entries.iter().filter_map(|(name, _)| name.as_text()).find(|name| known(name).is_none());
    if let Some(name) = left {
        return Err(bad(format!(
            "the module has the setting {name}, which this component does not know: remove it with --unset {name}"
        )));
    }
    // Sort the settings, so that equal settings have equal bytes whatever order they were given in.
    entries.sort_by(|(one, _), (other, _)| one.as_text().cmp(&other.as_text()));
    Ok(crate::encode(&Value::Map(entries)).to_vec())
}

/// Return settings by name, in the form that `--set` takes.
pub(super) fn in_words(config: &[u8]) -> BTreeMap<String, String> {
    let word = |(name, value): (Value, Value)| {
        Some((name.as_text()?.to_owned(), to_text(&value, &Type::Any).into_owned()))
    };
    entries(config).into_iter().filter_map(word).collect()
}

/// Return the entries of a CBOR map; none for anything else, which only a caller other than [`merged`] could
/// have written.
fn entries(config: &[u8]) -> Vec<(Value, Value)> {
    match ciborium::from_reader(config) {
        Ok(Value::Map(entries)) => entries,
        _ => Vec::new(),
    }
}

fn unknown(name: &str, description: &Description) -> String {
    let known: Vec<&str> = description.config.iter().map(|param| param.name.as_str()).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    format!("{} has no setting `{name}`; it has {known}", description.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use annulus_wasm::Param;

    #[test]
    fn no_bytes_make_the_settings_panic() {
        use annulus_core::junk::{Target, attack, done};

        let mut valid = Vec::new();
        ciborium::into_writer(&Value::Map(vec![("a".into(), "1".into())]), &mut valid).unwrap();
        attack(&[Target { name: "settings", valid: vec![valid], decode: |bytes| done(entries(bytes)) }]);
    }

    fn description(names: &[&str]) -> Description {
        let param = |name: &&str| Param {
            name: (*name).to_owned(),
            ty: "uint".into(),
            doc: String::new(),
            optional: true,
        };
        Description {
            name: "shop".into(),
            version: "1".into(),
            doc: String::new(),
            commands: vec![],
            config: names.iter().map(param).collect(),
            writes_formats: vec![1],
            reads_formats: vec![1],
            exported: Default::default(),
        }
    }

    fn given(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn settings_are_typed_and_unknown_ones_refused() {
        let shop = description(&["limit"]);
        let set = |pairs| merged(None, (&given(pairs), &[]), &shop);
        let bytes = set(&[("limit", "7")]).unwrap();
        assert_eq!(bytes, [0xa1, 0x65, b'l', b'i', b'm', b'i', b't', 0x07]);
        assert!(set(&[("limit", "-1")]).unwrap_err().message.contains("not uint"));
        assert!(set(&[("color", "1")]).unwrap_err().message.contains("it has limit"));
        assert!(set(&[("limit", "1"), ("limit", "2")]).unwrap_err().message.contains("twice"));
    }

    #[test]
    fn settings_that_are_not_named_are_kept_and_unset_ones_removed() {
        let shop = description(&["a", "b", "c"]);
        let has = merged(None, (&given(&[("b", "2"), ("a", "1")]), &[]), &shop).unwrap();
        let words = |config: &[u8]| in_words(config).into_iter().collect::<Vec<_>>();
        let next = merged(Some(&has), (&given(&[("a", "7"), ("c", "3")]), &["b".to_owned()]), &shop).unwrap();
        assert_eq!(words(&next), given(&[("a", "7"), ("c", "3")]));
        let same = merged(Some(&has), (&given(&[("a", "1")]), &[]), &shop).unwrap();
        assert_eq!(same, has, "the same settings are the same bytes");
        // If the component no longer knows a setting, the error names the remedy.
        let error = merged(Some(&has), (&given(&[("a", "1")]), &[]), &description(&["a"])).unwrap_err();
        assert!(error.message.contains("--unset b"), "{error:?}");
        let next = merged(Some(&has), (&[], &["b".to_owned()]), &description(&["a"])).unwrap();
        assert_eq!(words(&next), given(&[("a", "1")]));
        assert!(merged(Some(&has), (&[], &["x".to_owned()]), &shop).is_err());
    }
}
