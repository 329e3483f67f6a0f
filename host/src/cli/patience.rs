//! The options of every verb that moves partitions: whether and how long to wait for the moves.

use std::time::Duration;

use super::duration::{millis, parse_duration};

/// Whether and how long a verb waits for partitions to move.
#[derive(Debug, clap::Args)]
pub(super) struct Patience {
    /// Do not wait until every partition has moved
    #[arg(long)]
    no_wait: bool,
    /// Longest time to wait until every partition has moved
    #[arg(long, value_parser = parse_duration, default_value = "5m")]
    timeout: Duration,
}

impl Patience {
    /// Return true if the node answers only after every partition has moved.
    pub(super) fn waits(&self) -> bool {
        !self.no_wait
    }

    /// Return the longest time to wait, in milliseconds, as the requests carry it.
    pub(super) fn timeout_ms(&self) -> u64 {
        millis(self.timeout)
    }
}
