//! State that replicas can merge, and its encoding as items.

mod latest;
mod table;

pub use latest::Latest;
pub use table::{Items, Table};

/// The state that one item holds, and the merge of two versions of it.
///
/// For all a, b, c: `a.merge(b)` and `b.merge(a)` write the same bytes; so do `a.merge(b).merge(c)` and
/// `a.merge(b.merge(c))`; and `a.merge(a)` writes the same bytes as a. [`testing::laws`](crate::testing::laws)
/// checks a set of examples. The bytes count: do not write a `HashMap`, whose order differs from run to run.
pub trait State: Sized {
    /// The formats that `write` and `read` support, in ascending order, each below 256.
    const FORMATS: &'static [u32] = &[1];

    /// Append this state in one of `FORMATS`.
    fn write(&self, format: u32, bytes: &mut Vec<u8>);

    /// Read a state that `write` wrote in that format, possibly long ago.
    ///
    /// # Errors
    /// A message that says why the bytes are not such a state. They may come from another node, an older
    /// version or a backup.
    fn read(format: u32, bytes: &[u8]) -> Result<Self, String>;

    /// Merge two versions.
    #[must_use]
    fn merge(self, other: Self) -> Self;

    /// Return true for a tombstone: there is no value, only the record of what it replaces.
    fn is_deleted(&self) -> bool {
        false
    }
}

/// Encode an item's value: the format in the first byte, then the state. A format that `S` does not support
/// is replaced by the newest one of `S`.
#[must_use]
pub fn encode_item<S: State>(state: &S, format: u32) -> Vec<u8> {
    let newest = S::FORMATS.last().copied().unwrap_or(1);
    let format = if S::FORMATS.contains(&format) { format } else { newest };
    let mut bytes = Vec::with_capacity(64);
    bytes.push(u8::try_from(format).expect("State::FORMATS are below 256"));
    state.write(format, &mut bytes);
    bytes
}

/// Decode the state in an item's value.
///
/// # Errors
/// A message that says why it cannot be read.
pub fn decode_item<S: State>(bytes: &[u8]) -> Result<S, String> {
    let (format, body) = bytes.split_first().ok_or("the item is empty")?;
    let format = u32::from(*format);
    if !S::FORMATS.contains(&format) {
        return Err(format!(
            "the item has format {format}; the formats that can be read are {:?}",
            S::FORMATS
        ));
    }
    S::read(format, body)
}
