//! Finds one entry of a CBOR map without copying the other entries.

use std::borrow::Cow;

/// Maximum nesting depth that the scan covers.
const MAX_DEPTH: usize = 16;

/// Return the value of the first map entry with this name as a routing key: text as UTF-8, bytes unchanged, and an
/// integer in decimal.
///
/// Return `None` if there is no such entry or its value has another type, and for input that the scan does not cover:
/// malformed CBOR, indefinite lengths, tags, simple values other than booleans and null, and nesting deeper than
/// [`MAX_DEPTH`]. The scan validates the whole map, so a caller that falls back to a full parser on `None` gets the
/// result of that parser for every input.
pub(super) fn key_of_entry<'a>(map: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    let mut rest = Rest(map);
    let (MAP, entries) = rest.head()? else { return None };
    let mut found = None;
    for _ in 0..entries {
        let (major, argument) = rest.head()?;
        let is_name = rest.item(major, argument, 1)? == Some(name.as_bytes()) && major == TEXT;
        let (major, argument) = rest.head()?;
        let bytes = rest.item(major, argument, 1)?;
        if is_name && found.is_none() {
            found = Some(match (major, bytes) {
                (BYTES | TEXT, Some(bytes)) => Cow::Borrowed(bytes),
                (UNSIGNED, _) => Cow::Owned(argument.to_string().into_bytes()),
                (NEGATIVE, _) => Cow::Owned((-1 - i128::from(argument)).to_string().into_bytes()),
                _ => return None,
            });
        }
    }
    found
}

// Major types.
const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const SIMPLE: u8 = 7;

/// The bytes that have not been scanned yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = tail;
        Some(head)
    }

    /// Read the head of an item and return its major type and argument. The argument of a simple value is its
    /// additional information; the argument of a float is [`FLOAT`].
    fn head(&mut self) -> Option<(u8, u64)> {
        let first = *self.take(1)?.first()?;
        let (major, info) = (first >> 5, first & 0x1f);
        let following = match info {
            0..=23 => return Some((major, u64::from(info))),
            24..=27 => 1 << (info - 24),
            _ => return None,
        };
        let argument = self.take(following)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        match (major, info) {
            // Simple values encoded in two bytes are not covered.
            (SIMPLE, 24) => None,
            (SIMPLE, _) => Some((SIMPLE, FLOAT)),
            _ => Some((major, argument)),
        }
    }

    /// Skip the content of an item whose head has been read. Return the content if the item is text or bytes.
    fn item(&mut self, major: u8, argument: u64, depth: usize) -> Option<Option<&'a [u8]>> {
        let items = match major {
            UNSIGNED | NEGATIVE => 0,
            BYTES => return self.take(argument).map(Some),
            TEXT => {
                let text = self.take(argument)?;
                return std::str::from_utf8(text).is_ok().then_some(Some(text));
            }
            ARRAY => argument,
            MAP => argument.checked_mul(2)?,
            SIMPLE if matches!(argument, FALSE | TRUE | NULL | FLOAT) => 0,
            _ => return None,
        };
        if items > 0 && depth >= MAX_DEPTH {
            return None;
        }
        for _ in 0..items {
            let (major, argument) = self.head()?;
            self.item(major, argument, depth + 1)?;
        }
        Some(None)
    }
}

// Arguments of major type 7. `FLOAT` is not a CBOR value: `head` returns it for floats of every width.
const FALSE: u64 = 20;
const TRUE: u64 = 21;
const NULL: u64 = 22;
const FLOAT: u64 = u64::MAX;
