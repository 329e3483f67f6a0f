//! Time in which this process runs.
//!
//! A process may be stopped for a while: by SIGSTOP, with its machine, by a debugger. A guest that
//! sleeps in a call has not slept meanwhile, and must not be taken for one that never
//! ends: with its instance all would go that it keeps in memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What one step counts at most. Far more than a busy machine holds up the thread that
/// steps, far less than any limit that is measured.
const LONGEST_STEP: Duration = Duration::from_millis(100);

/// A clock that somebody steps while calls run, and that stands while nobody can.
#[derive(Debug, Default)]
pub(super) struct RunClock {
    micros: AtomicU64,
}

impl RunClock {
    /// So much has passed since the step before.
    pub(super) fn pass(&self, time: Duration) {
        let micros = u64::try_from(time.min(LONGEST_STEP).as_micros()).unwrap_or_default();
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Time in which the process ran and the clock was stepped, since it was made.
    pub(super) fn now(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_of_the_process_hardly_counts() {
        let clock = RunClock::default();
        for _ in 0..5 {
            clock.pass(Duration::from_millis(1));
        }
        assert_eq!(clock.now(), Duration::from_millis(5));
        clock.pass(Duration::from_secs(30));
        assert_eq!(clock.now(), Duration::from_millis(5) + LONGEST_STEP);
    }
}
