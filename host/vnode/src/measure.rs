//! The size of a vnode in items and bytes.

use annulus_core::item::Page;

/// Number and size of items, tombstones excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionSize {
    /// Number of items.
    pub items: u64,
    /// Total length of keys, sorts and values in bytes.
    pub bytes: u64,
}

impl PartitionSize {
    /// Add another size.
    pub(super) fn add(&mut self, other: Self) {
        self.items += other.items;
        self.bytes += other.bytes;
    }
}

/// The size of one page of a fold.
pub struct PageSize {
    pub(super) size: PartitionSize,
    /// Resume token of the next page, `None` for the last page.
    pub(super) next: Option<Vec<u8>>,
}

impl PageSize {
    /// Measure a page.
    pub(super) fn of(page: Page) -> Self {
        let mut size = PartitionSize::default();
        for item in page.items.iter().filter(|item| !item.deleted) {
            size.add(PartitionSize { items: 1, bytes: item.len() as u64 });
        }
        Self { size, next: page.next }
    }
}
