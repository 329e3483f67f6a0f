//! Log lines of guests, bounded in length and in rate.
//!
//! A guest may log any number of messages of any length. Without bounds, a single call could fill a disk; with line
//! breaks in it, a message could look like one of the host's own lines.

use std::fmt;
use std::time::Duration;

use annulus_core::wording::one_line;
use tokio::time::Instant;

use super::bindings::annulus::vnode::log::Level;

/// Longest message, in bytes; the rest of a longer one is counted.
const MAX_MESSAGE_BYTES: usize = 4 << 10;
/// Maximum number of lines that one vnode may write at once after a time without lines.
const BURST: u32 = 100;
/// Time until one more line may be written: 100 lines a second.
const LINE_TIME: Duration = Duration::from_millis(10);

/// Shortest time between two reports of lines that were left out.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The log lines of one instance: a token bucket.
pub(super) struct GuestLog {
    lines: u32,
    /// Time up to which `lines` is counted.
    counted_to: Option<Instant>,
    /// Number of lines left out since the last report.
    left_out: u64,
    reported: Option<Instant>,
}

impl Default for GuestLog {
    fn default() -> Self {
        Self { lines: BURST, counted_to: None, left_out: 0, reported: None }
    }
}

impl GuestLog {
    /// Write one message to the host's log, or leave it out if the vnode has written too many lines lately.
    pub(super) fn write(
        &mut self,
        module: &str,
        partition: u32,
        request: impl fmt::Display,
        level: Level,
        message: &str,
    ) {
        // A line that the log's filter does not show uses no token.
        let shown = match level {
            Level::Debug => tracing::enabled!(target: "guest", tracing::Level::DEBUG),
            Level::Info => tracing::enabled!(target: "guest", tracing::Level::INFO),
            Level::Warn => tracing::enabled!(target: "guest", tracing::Level::WARN),
            Level::Error => tracing::enabled!(target: "guest", tracing::Level::ERROR),
        };
        if !shown {
            return;
        }
        let now = Instant::now();
        if !self.admit(now) {
            self.left_out += 1;
            if self.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT_EVERY) {
                let left_out = std::mem::take(&mut self.left_out);
                tracing::warn!(target: "guest", module, partition, left_out, "this vnode logs too much: lines are left out");
                self.reported = Some(now);
            }
            return;
        }
        let message = one_line(message, MAX_MESSAGE_BYTES);
        match level {
            Level::Debug => tracing::debug!(target: "guest", module, partition, %request, "{message}"),
            Level::Info => tracing::info!(target: "guest", module, partition, %request, "{message}"),
            Level::Warn => tracing::warn!(target: "guest", module, partition, %request, "{message}"),
            Level::Error => tracing::error!(target: "guest", module, partition, %request, "{message}"),
        }
    }

    fn admit(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(*self.counted_to.get_or_insert(now));
        let gained = u32::try_from(since.as_millis() / LINE_TIME.as_millis()).unwrap_or(u32::MAX);
        if gained > 0 {
            self.lines = self.lines.saturating_add(gained).min(BURST);
            self.counted_to = Some(now);
        }
        let admitted = self.lines > 0;
        self.lines -= u32::from(admitted);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_rate_are_left_out() {
        let mut log = GuestLog::default();
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let admitted =
            |log: &mut GuestLog, ms: u64, tried: usize| (0..tried).filter(|_| log.admit(at(ms))).count();
        assert_eq!(admitted(&mut log, 0, 1_000), BURST as usize);
        assert_eq!(admitted(&mut log, 9, 10), 0);
        assert_eq!(admitted(&mut log, 10, 10), 1);
        assert_eq!(admitted(&mut log, 510, 1_000), 50);
        // After a long time without lines, a burst is still limited.
        assert_eq!(admitted(&mut log, 3_600_000, 1_000), BURST as usize);
    }
}
