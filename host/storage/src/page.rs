//! Pages of the items in a range, and their resume tokens.

use std::ops::Bound;

use annulus_core::item::{Budget, Item, ItemAddr, Page, Version};

/// The items that a scan returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only items of this routing key.
    pub key: Option<Vec<u8>>,
    /// Only items whose sort is not less than this.
    pub start: Option<Vec<u8>>,
    /// Only items whose sort is less than this.
    pub end: Option<Vec<u8>>,
    /// In descending order.
    pub reverse: bool,
    /// Tombstones too.
    pub deleted: bool,
}

impl Selection {
    /// All items, tombstones included.
    pub const ALL: Self = Self { key: None, start: None, end: None, reverse: false, deleted: true };

    /// Return the token of a page that ends with the item of this routing key and an empty sort.
    pub fn token_after(key: &[u8]) -> Vec<u8> {
        token_of_addr(key, &[])
    }

    /// Return true if an item comes after the page with this token, in ascending order.
    pub fn is_after(item: &Item, token: &[u8]) -> bool {
        addr_of_token(token).is_none_or(|last| (&item.key, &item.sort) > (&last.key, &last.sort))
    }

    /// Return the addresses to read after the page with this token. A token that no page returned means the first page.
    pub(super) fn bounds(&self, after: Option<&[u8]>) -> (Bound<ItemAddr>, Bound<ItemAddr>) {
        let (mut from, mut to) = match &self.key {
            // The range of `sort` is part of the address only within one key.
            Some(key) => {
                let at = |sort: &[u8]| ItemAddr { key: key.clone(), sort: sort.to_vec() };
                let from = Bound::Included(at(self.start.as_deref().unwrap_or_default()));
                let to = match &self.end {
                    Some(end) => at(end),
                    None => ItemAddr { key: successor(key), sort: Vec::new() },
                };
                (from, Bound::Excluded(to))
            }
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        if let Some(after) = after.and_then(addr_of_token) {
            if self.reverse { to = Bound::Excluded(after) } else { from = Bound::Excluded(after) }
        }
        (from, to)
    }

    /// Return true if an item within the bounds is part of the selection.
    pub(super) fn selects(&self, addr: &ItemAddr, version: &Version) -> bool {
        let in_range = self.start.as_ref().is_none_or(|start| addr.sort >= *start)
            && self.end.as_ref().is_none_or(|end| addr.sort < *end);
        in_range && (self.deleted || !version.deleted)
    }
}

/// Continue a page with the items that a call sees within the bounds of a selection. It is complete if it then has a
/// token.
pub(super) fn page(
    mut page: Page,
    seen: impl Iterator<Item = (ItemAddr, Version)>,
    selection: &Selection,
    limit: Budget,
) -> Page {
    let mut bytes: usize = page.items.iter().map(Item::len).sum();
    for (addr, version) in seen.filter(|(addr, version)| selection.selects(addr, version)) {
        let item = Item::new(addr, version);
        let full = page.items.len() >= limit.items as usize || bytes + item.len() > limit.bytes as usize;
        if full && let Some(last) = page.items.last() {
            page.next = Some(token_of_addr(&last.key, &last.sort));
            break;
        }
        bytes += item.len();
        page.items.push(item);
    }
    page
}

/// Return the first byte string after `key`.
fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

/// Return the resume token of a page that ends at an address: length of the key, key, sort.
fn token_of_addr(key: &[u8], sort: &[u8]) -> Vec<u8> {
    let mut token = Vec::with_capacity(4 + key.len() + sort.len());
    token.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes());
    token.extend_from_slice(key);
    token.extend_from_slice(sort);
    token
}

fn addr_of_token(token: &[u8]) -> Option<ItemAddr> {
    let (length, rest) = token.split_first_chunk::<4>()?;
    let (key, sort) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some(ItemAddr { key: key.to_vec(), sort: sort.to_vec() })
}
