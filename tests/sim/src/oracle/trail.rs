//! The values that a crash may leave of a durable key.
//!
//! A write takes effect before it is durable. No answer leaves before everything that it tells of is durable (R11), so
//! an answer fixes the value that its request has written or found, and everything earlier is over.

use std::collections::{BTreeSet, VecDeque};

/// The values of a key since the newest one that an answer has told of, in order.
#[derive(Clone, Debug)]
pub(super) struct Trail {
    /// Number of the first entry.
    first: u64,
    /// The first entry is durable: one of its values. Each later entry is one value, which may not be durable yet.
    entries: VecDeque<BTreeSet<Option<u64>>>,
}

impl Trail {
    /// Begin with a durable value: one of these.
    pub(super) fn begins(values: impl IntoIterator<Item = Option<u64>>) -> Self {
        Self { first: 0, entries: [values.into_iter().collect()].into() }
    }

    /// Record a value that nobody was told of yet.
    pub(super) fn goes_on(&mut self, value: Option<u64>) {
        self.entries.push_back([value].into());
    }

    /// Return the mark of the newest value.
    pub(super) fn mark(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    /// Record an answer that tells of the value with this mark.
    pub(super) fn is_told(&mut self, mark: u64) {
        // Nothing happens if the mark is older than the last doubt.
        while self.first < mark && self.entries.len() > 1 {
            self.entries.pop_front();
            self.first += 1;
        }
    }

    /// Return the values of which a crash leaves one; `None` if there is no doubt.
    pub(super) fn left(&self) -> Option<BTreeSet<Option<u64>>> {
        let left: BTreeSet<_> = self.entries.iter().flatten().copied().collect();
        (left.len() > 1).then_some(left)
    }

    /// Record that a crash may leave any of these values, besides those that it may leave already.
    pub(super) fn is_in_doubt(&mut self, values: impl IntoIterator<Item = Option<u64>>) {
        let first = self.mark() + 1;
        let all = self.entries.iter().flatten().copied().chain(values).collect();
        (self.first, self.entries) = (first, [all].into());
    }

    /// Record that the key's module has ended: the next one begins without a value.
    pub(super) fn is_over(&mut self) {
        (self.first, self.entries) = (self.mark() + 1, [[None].into()].into());
    }
}
