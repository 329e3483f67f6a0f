//! State that replicas can merge, and how it becomes items.

mod latest;
mod table;

pub use latest::Latest;
pub use table::{Items, Table};

/// What one item holds, and how two versions of it become one.
///
/// For all a, b, c: `a.merge(b)` and `b.merge(a)` write the same bytes; so do
/// `a.merge(b).merge(c)` and `a.merge(b.merge(c))`; and `a.merge(a)` those of a.
/// [`testing::laws`](crate::testing::laws) checks a set of examples. Bytes count: no `HashMap` in
/// what is written, whose order differs from run to run.
pub trait State: Sized {
    /// The formats that `write` and `read` know, in ascending order, each below 256.
    const FORMATS: &'static [u32] = &[1];

    /// Appends this state in one of `FORMATS`.
    fn write(&self, format: u32, bytes: &mut Vec<u8>);

    /// Reads what `write` wrote in that format, possibly long ago.
    ///
    /// # Errors
    /// Why the bytes are no such state: they come from another node, an older version, a backup.
    fn read(format: u32, bytes: &[u8]) -> Result<Self, String>;

    /// Both as one.
    #[must_use]
    fn merge(self, other: Self) -> Self;

    /// A tombstone: there is nothing, and it remembers what it takes the place of.
    fn is_deleted(&self) -> bool {
        false
    }
}

/// An item's value: the format in the first byte, then the state. A format that `S` does not know
/// gives way to the newest that it does.
#[must_use]
pub fn encode_item<S: State>(state: &S, format: u32) -> Vec<u8> {
    let newest = S::FORMATS.last().copied().unwrap_or(1);
    let format = if S::FORMATS.contains(&format) { format } else { newest };
    let mut bytes = Vec::with_capacity(64);
    bytes.push(u8::try_from(format).expect("State::FORMATS are below 256"));
    state.write(format, &mut bytes);
    bytes
}

/// The state in an item's value.
///
/// # Errors
/// Why it cannot be read.
pub fn decode_item<S: State>(bytes: &[u8]) -> Result<S, String> {
    let (format, body) = bytes.split_first().ok_or("an item without bytes")?;
    let format = u32::from(*format);
    if !S::FORMATS.contains(&format) {
        return Err(format!("format {format} of an item, of which {:?} can be read", S::FORMATS));
    }
    S::read(format, body)
}
