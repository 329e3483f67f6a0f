//! One item of a scripted guest: a value with the version that decides a merge.

use ciborium::Value;
use serde::{Deserialize, Serialize};

/// A value or a tombstone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Version: one more than that of the replaced entry.
    pub version: u64,
    /// Actor of the write's dot (R8).
    pub actor: u64,
    /// Counter of the write's dot.
    pub counter: u64,
    /// Whether the entry is a tombstone.
    pub deleted: bool,
    /// The value; null in a tombstone.
    pub value: Value,
    /// Bytes appended to the encoding, to make it longer.
    pub pad: u32,
}

/// Format 1, a list. Format 2 is a map of field names, so neither can be read as the other.
#[derive(Serialize, Deserialize)]
struct First(u64, u64, u64, bool, Value, u32);

impl Entry {
    /// Create the entry that replaces `before`; a tombstone if there is no value.
    pub(super) fn after(before: Option<&Self>, dot: (u64, u64), value: Option<Value>, pad: u32) -> Self {
        Self {
            version: before.map_or(0, |before| before.version) + 1,
            actor: dot.0,
            counter: dot.1,
            deleted: value.is_none(),
            value: value.unwrap_or(Value::Null),
            pad,
        }
    }

    /// Return true if this entry wins a merge. Of two entries one wins, unless both are of the same write.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        let rank = |entry: &Self| (entry.version, entry.actor, entry.counter);
        rank(self) > rank(other)
    }

    /// Return the entry that has the members of both lists, in an order that does not depend on which is which. An entry
    /// whose value is no list counts as a list of its value, a tombstone as an empty one.
    pub(super) fn united_with(&self, other: &Self) -> Self {
        let newer = if other.is_newer_than(self) { other } else { self };
        let members = |entry: &Self| match &entry.value {
            _ if entry.deleted => Vec::new(),
            Value::Array(members) => members.clone(),
            value => vec![value.clone()],
        };
        let encoded = |value: &Value| {
            let mut bytes = Vec::new();
            ciborium::into_writer(value, &mut bytes).expect("a value is plain data and a Vec never fails");
            bytes
        };
        let mut all = members(self);
        all.extend(members(other));
        all.sort_by_cached_key(encoded);
        all.dedup();
        Self { value: Value::Array(all), deleted: false, ..newer.clone() }
    }

    /// Encode the entry in the form that is sent to other nodes and stored by the host.
    pub fn encode(&self, format: u32) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(format).unwrap_or(u8::MAX)];
        let written = if format == 1 {
            let Self { version, actor, counter, deleted, value, pad } = self.clone();
            ciborium::into_writer(&First(version, actor, counter, deleted, value, pad), &mut bytes)
        } else {
            ciborium::into_writer(self, &mut bytes)
        };
        written.expect("an entry is plain data and a Vec never fails");
        bytes.resize(bytes.len() + self.pad as usize, 0);
        bytes
    }

    /// Return the approximate length of the encoding, in bytes.
    pub(super) fn size(&self) -> usize {
        Self { pad: 0, ..self.clone() }.encode(2).len() + self.pad as usize
    }

    /// Decode an entry that is in one of the formats `reads`.
    ///
    /// # Errors
    /// If the entry is in another format, or in none.
    pub fn decode(bytes: &[u8], reads: &[u32]) -> Result<Self, String> {
        let (format, entry) = bytes.split_first().ok_or("an item of no bytes")?;
        if !reads.contains(&u32::from(*format)) {
            return Err(format!("an item has format {format}, but this release reads {reads:?}"));
        }
        let junk = |error: ciborium::de::Error<std::io::Error>| format!("an item is junk: {error}");
        if *format != 1 {
            return ciborium::from_reader(entry).map_err(junk);
        }
        let First(version, actor, counter, deleted, value, pad) =
            ciborium::from_reader(entry).map_err(junk)?;
        Ok(Self { version, actor, counter, deleted, value, pad })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_entry_reads_back_in_its_format_and_in_no_other() {
        let first = Entry::after(None, (7, 1), Some("a".into()), 1000);
        let gone = Entry::after(Some(&first), (7, 2), None, 0);
        for entry in [&first, &gone] {
            for format in [1, 2] {
                let bytes = entry.encode(format);
                assert!(bytes.len() > entry.pad as usize);
                assert_eq!(&Entry::decode(&bytes, &[1, 2]).unwrap(), entry);
                assert!(Entry::decode(&bytes, &[3 - format]).is_err());
                let mut other = bytes;
                other[0] = u8::try_from(3 - format).unwrap();
                assert!(Entry::decode(&other, &[1, 2]).is_err());
            }
        }
        let list = |members: &[u64]| Value::Array(members.iter().copied().map(Value::from).collect());
        let one = Entry::after(None, (7, 1), Some(list(&[1, 2])), 0);
        let other = Entry::after(None, (8, 1), Some(list(&[3, 2])), 0);
        let both = one.united_with(&other);
        assert_eq!((&both, &both.value), (&other.united_with(&one), &list(&[1, 2, 3])));
        assert_eq!((both.united_with(&one), both.united_with(&both)), (both.clone(), both.clone()));
        assert!(gone.is_newer_than(&first) && !first.is_newer_than(&gone) && !gone.is_newer_than(&gone));
    }
}
