//! One item of a scripted guest: a value with the version by which two of them are merged.

use ciborium::Value;
use serde::{Deserialize, Serialize};

/// A value, or that there is none any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// One more than that of the entry that it replaced.
    pub version: u64,
    /// The dot of its write (R8): who.
    pub actor: u64,
    /// And which of theirs.
    pub counter: u64,
    /// A tombstone.
    pub deleted: bool,
    /// Null in a tombstone.
    pub value: Value,
    /// Bytes that its encoding is longer than it has to be.
    pub pad: u32,
}

/// Format 1 is a list, format 2 a map by names: neither is read as the other.
#[derive(Serialize, Deserialize)]
struct First(u64, u64, u64, bool, Value, u32);

impl Entry {
    /// What replaces `before`; a tombstone where there is no value.
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

    /// Of any two, one is newer, or they are of the same write.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        let rank = |entry: &Self| (entry.version, entry.actor, entry.counter);
        rank(self) > rank(other)
    }

    /// As it goes over the wire and into host storage.
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

    /// About how long its encoding is.
    pub(super) fn size(&self) -> usize {
        Self { pad: 0, ..self.clone() }.encode(2).len() + self.pad as usize
    }

    /// From what it was written as.
    ///
    /// # Errors
    /// It is of none of the formats that may be read, or of no format.
    pub fn decode(bytes: &[u8], reads: &[u32]) -> Result<Self, String> {
        let (format, entry) = bytes.split_first().ok_or("an item of no bytes")?;
        if !reads.contains(&u32::from(*format)) {
            return Err(format!("an item of format {format}, of which this release reads {reads:?}"));
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
        assert!(gone.is_newer_than(&first) && !first.is_newer_than(&gone) && !gone.is_newer_than(&gone));
    }
}
