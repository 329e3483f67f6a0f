//! Coverage by pages: where one begins, how much it may hold, what it answers.

use serde::Serialize;

use crate::reply::to_cbor;
use crate::{Budget, Values};

/// Where a page of coverage begins and how much it may hold.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The token that the page before ended with; none for the first page.
    pub after: Option<Vec<u8>>,
    /// Stop at whichever is reached first, but not before the first value.
    pub limit: Budget,
}

/// One value of a coverage answer, or nothing. Anything that serde can serialize turns into it
/// by `.into()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emit(Option<Vec<u8>>);

impl Emit {
    /// No value for this item.
    #[must_use]
    pub fn nothing() -> Self {
        Self(None)
    }
}

impl<T: Serialize> From<T> for Emit {
    fn from(value: T) -> Self {
        Self(Some(to_cbor(&value).expect("a coverage value that its own Serialize refuses")))
    }
}

impl Values {
    /// An answer of one page.
    pub fn of<T: Serialize>(values: impl IntoIterator<Item = T>) -> Self {
        let mut page = Self::default();
        values.into_iter().for_each(|value| {
            page.push(value.into());
        });
        page
    }

    /// Adds a value; answers how many bytes it takes.
    pub(crate) fn push(&mut self, value: Emit) -> usize {
        let Some(bytes) = value.0 else { return 0 };
        let size = bytes.len();
        self.values.push(bytes);
        size
    }
}

// The type is generated, so nothing can be derived on it here.
#[allow(clippy::derivable_impls)]
impl Default for Values {
    fn default() -> Self {
        Self { values: Vec::new(), touched: Vec::new(), next: None }
    }
}

/// Counts down a [`Budget`]: says when a page is full, never before its first item.
pub(crate) struct Remaining {
    items: u32,
    bytes: usize,
}

impl Remaining {
    pub(crate) fn of(limit: Budget) -> Self {
        Self { items: limit.items, bytes: limit.bytes as usize }
    }

    /// Takes what one item costs. False: the page is full now.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.items > 0 && self.bytes > 0
    }
}
