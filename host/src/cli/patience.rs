//! The flags of every verb that has partitions move: how long to wait for that, if at all.

use std::time::Duration;

use super::duration::{millis, parse_duration};

/// Until when a verb waits.
#[derive(Debug, clap::Args)]
pub(super) struct Patience {
    /// Do not wait until all has moved
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until all has moved
    #[arg(long, value_parser = parse_duration, default_value = "5m")]
    timeout: Duration,
}

impl Patience {
    /// Is the answer to come only when all has moved?
    pub(super) fn waits(&self) -> bool {
        !self.no_wait
    }

    /// How long that may take, as the request says it.
    pub(super) fn timeout_ms(&self) -> u64 {
        millis(self.timeout)
    }
}
