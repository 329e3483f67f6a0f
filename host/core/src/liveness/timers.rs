//! Pending timers.

use std::collections::BTreeMap;
use std::time::Duration;

/// Timers by due time; equal times in the order in which they were set.
pub(super) struct Timers<T> {
    due: BTreeMap<(Duration, u64), T>,
    set: u64,
}

impl<T> Timers<T> {
    pub(super) fn new() -> Self {
        Self { due: BTreeMap::new(), set: 0 }
    }

    pub(super) fn at(&mut self, time: Duration, timer: T) {
        self.set += 1;
        self.due.insert((time, self.set), timer);
    }

    /// Return the due time of the next timer.
    pub(super) fn next(&self) -> Option<Duration> {
        self.due.keys().next().map(|(time, _)| *time)
    }

    /// Remove and return the next timer that is due.
    pub(super) fn pop(&mut self, now: Duration) -> Option<T> {
        let first = self.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    /// Postpone all timers.
    pub(super) fn shift(&mut self, by: Duration) {
        let due = std::mem::take(&mut self.due);
        self.due = due.into_iter().map(|((time, set), timer)| ((time + by, set), timer)).collect();
    }
}
