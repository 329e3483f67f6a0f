//! The fields of fjall's journal, found in a file, so that each can be damaged.
//!
//! A batch is a start (tag, number of entries, sequence number), its entries (tag, kind, compression, keyspace, three
//! lengths, key, value) and an end (tag, checksum, trailer). Numbers are little-endian.

use std::ops::Range;

const START: u8 = 1;
const ENTRY: u8 = 2;
const END: u8 = 3;

/// A field: its name and its bytes in the file.
pub type Field = (&'static str, Range<usize>);

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    fields: Vec<Field>,
}

impl Cursor<'_> {
    /// Note a field of this many bytes and return its value, which is only meaningful for numbers.
    fn take(&mut self, name: &'static str, length: usize) -> Option<u64> {
        let range = self.at..self.at + length;
        let bytes = self.bytes.get(range.clone())?;
        self.at = range.end;
        self.fields.push((name, range));
        Some(bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// Return the fields of the batch that begins at `at`, and the position after it; `None` if there is no whole batch.
fn batch(bytes: &[u8], at: usize) -> Option<(Vec<Field>, usize)> {
    let mut cursor = Cursor { bytes, at, fields: Vec::new() };
    if cursor.take("start tag", 1)? != u64::from(START) {
        return None;
    }
    let entries = cursor.take("number of entries", 4)?;
    cursor.take("sequence number", 8)?;
    for _ in 0..entries {
        if cursor.take("entry tag", 1)? != u64::from(ENTRY) {
            return None;
        }
        cursor.take("kind", 1)?;
        cursor.take("compression", 1)?;
        cursor.take("keyspace", 8)?;
        let key = cursor.take("key length", 2)?;
        cursor.take("value length", 4)?;
        let value = cursor.take("length on disk", 4)?;
        cursor.take("key", usize::try_from(key).ok()?)?;
        cursor.take("value", usize::try_from(value).ok()?)?;
    }
    if cursor.take("end tag", 1)? != u64::from(END) {
        return None;
    }
    cursor.take("checksum", 8)?;
    cursor.take("trailer", 4)?;
    let Cursor { at, fields, .. } = cursor;
    Some((fields, at))
}

/// Return the fields of all whole batches of a journal, batch by batch.
pub fn batches(bytes: &[u8]) -> Vec<Vec<Field>> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some((fields, next)) = batch(bytes, at) {
        all.push(fields);
        at = next;
    }
    all
}
