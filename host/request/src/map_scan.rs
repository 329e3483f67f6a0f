//! A scan of CBOR for one entry of a map, without a copy of the others.

use std::borrow::Cow;

/// Maximum nesting depth of the scan.
const MAX_DEPTH: usize = 16;

/// Return the value of the first entry of a map with this name, as the bytes of a routing key: text as UTF-8, bytes as
/// they are, an integer as its decimal digits.
///
/// `None` if there is no such entry, and for everything that the scan does not cover: malformed CBOR, indefinite
/// lengths, tags, values of other types. The scan validates the whole map, so that a caller may fall back to a complete
/// parser and gets the same result for every input.
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

/// The bytes that are not scanned yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = tail;
        Some(head)
    }

    /// Read the head of an item: its major type and argument. Of a simple value the argument is the additional
    /// information, of a float it is `FLOAT`.
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
            // A simple value of two bytes.
            (SIMPLE, 24) => None,
            (SIMPLE, _) => Some((SIMPLE, FLOAT)),
            _ => Some((major, argument)),
        }
    }

    /// Skip the content of an item after its head. Return the content of text and bytes.
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

const FALSE: u64 = 20;
const TRUE: u64 = 21;
const NULL: u64 = 22;
const FLOAT: u64 = u64::MAX;
