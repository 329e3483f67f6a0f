//! What is due when.

use std::collections::BTreeMap;
use std::time::Duration;

/// Things to do at a time, in the order in which they were asked for where the times are equal.
pub(super) struct Timers<T> {
    due: BTreeMap<(Duration, u64), T>,
    asked: u64,
}

impl<T> Timers<T> {
    pub(super) fn new() -> Self {
        Self { due: BTreeMap::new(), asked: 0 }
    }

    pub(super) fn at(&mut self, time: Duration, what: T) {
        self.asked += 1;
        self.due.insert((time, self.asked), what);
    }

    /// When there is something to do next.
    pub(super) fn next(&self) -> Option<Duration> {
        self.due.keys().next().map(|(time, _)| *time)
    }

    /// The next thing that is due.
    pub(super) fn pop(&mut self, now: Duration) -> Option<T> {
        let first = self.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    /// All of it happens so much later.
    pub(super) fn shift(&mut self, by: Duration) {
        let due = std::mem::take(&mut self.due);
        self.due = due.into_iter().map(|((time, asked), what)| ((time + by, asked), what)).collect();
    }
}
