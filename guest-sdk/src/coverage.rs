//! Pages of coverage: position, budget and values.

use serde::Serialize;

use crate::reply::to_cbor;
use crate::{Budget, Values};

/// The start of a page of coverage, and its budget.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The token at the end of the previous page; `None` for the first page.
    pub after: Option<Vec<u8>>,
    /// The budget of the page. Stop when either limit is reached, but not before the first value.
    pub limit: Budget,
}

/// One value of a coverage reply, or nothing. Any type that serde can serialize converts into it with
/// `.into()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emit(Option<Vec<u8>>);

impl Emit {
    /// Return no value for this item.
    #[must_use]
    pub fn nothing() -> Self {
        Self(None)
    }
}

impl<T: Serialize> From<T> for Emit {
    fn from(value: T) -> Self {
        Self(Some(to_cbor(&value).expect("the coverage value's own Serialize fails")))
    }
}

impl Values {
    /// Return a reply of a single page.
    pub fn of<T: Serialize>(values: impl IntoIterator<Item = T>) -> Self {
        let mut page = Self::default();
        values.into_iter().for_each(|value| {
            page.push(value.into());
        });
        page
    }

    /// Add a value and return its size in bytes.
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

/// Counts down a [`Budget`], so that a page ends when it is full but never before its first item.
pub(crate) struct Remaining {
    items: u32,
    bytes: usize,
}

impl Remaining {
    pub(crate) fn of(limit: Budget) -> Self {
        Self { items: limit.items, bytes: limit.bytes as usize }
    }

    /// Subtract the cost of one item. Return false if the page is full now.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.items > 0 && self.bytes > 0
    }
}
