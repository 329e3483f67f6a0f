//! A clock that counts only the time in which this process runs.
//!
//! A process may be stopped for a while: by SIGSTOP, together with its machine, or by a debugger. That time
//! must not count as sleep of a guest that sleeps in a call: the call would exceed its time limit, and everything
//! that the guest keeps in memory would be lost with its instance.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest time that one step counts. Far more than a busy machine delays the stepping thread, and far less
/// than any limit that is measured with this clock.
const LONGEST_STEP: Duration = Duration::from_millis(100);

/// A clock that a thread steps while calls run. It stops while that thread cannot run.
#[derive(Debug, Default)]
pub(super) struct RunClock {
    micros: AtomicU64,
}

impl RunClock {
    /// Step the clock by the time that has passed since the previous step, at most `LONGEST_STEP`.
    pub(super) fn pass(&self, time: Duration) {
        let micros = u64::try_from(time.min(LONGEST_STEP).as_micros()).unwrap_or_default();
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Return the sum of all steps.
    pub(super) fn now(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_of_the_process_counts_as_one_longest_step() {
        let clock = RunClock::default();
        for _ in 0..5 {
            clock.pass(Duration::from_millis(1));
        }
        assert_eq!(clock.now(), Duration::from_millis(5));
        clock.pass(Duration::from_secs(30));
        assert_eq!(clock.now(), Duration::from_millis(5) + LONGEST_STEP);
    }
}
