//! The pace of one outgoing transfer: permit, pauses, rate and back-off.
//!
//! [`Pacing`] decides when the [`Sender`](super::sender::Sender) may start, when it must hold, when a retry is due
//! and when a page may be read. The driver reports events, then carries out the effects of [`Pacing::next`] until it
//! returns `None`, then reads the page that [`Pacing::take_page`] releases, and sleeps until [`Pacing::wake_at`] or
//! the next event. A transfer that is urgent (sealed, or about to be, or being cancelled) is never delayed, because
//! requests wait for it.
//!
//! Times are measured from the same moment as those of the node's [`SendLimiter`].

use std::time::Duration;

use crate::ids::ModuleUid;

use super::limiter::SendLimiter;
use super::message::Refused;

/// The pause after the first failure; doubles with each further one, up to [`LONGEST_PAUSE`].
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two attempts.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause after a receiver has refused because it is busy or has not compiled a module yet. Both reasons
/// pass, and another request costs little.
pub const LONGEST_PAUSE_WHILE_BUSY: Duration = Duration::from_secs(1);
/// The time after the last failure from which progress resets the number of failures.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// Return the pause after this number of consecutive failures.
pub fn pause_after(failures: u32) -> Duration {
    (FIRST_PAUSE * 2u32.pow(failures.clamp(1, 10) - 1)).min(LONGEST_PAUSE)
}

/// A page that the sender has asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The attempt that the page is for.
    pub attempt: u64,
    /// The module to read.
    pub module: ModuleUid,
    /// The token of the page before; `None` for the first page.
    pub after: Option<Vec<u8>>,
}

/// Input of [`Pacing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The pauses that operators have set, at this node and at the receiver.
    Paused {
        /// At this node.
        here: bool,
        /// At the receiver.
        there: bool,
    },
    /// The present state of the requested permit. Also answers [`Effect::RequestPermit`].
    Permit {
        /// Whether the transfer may send.
        granted: bool,
    },
    /// The sender asks for a page.
    PageWanted(PageRequest),
    /// The sender is started: by [`Effect::Start`], or at once where the partition is sealed.
    Started,
    /// The receiver has taken items.
    Progress,
    /// The sender asks for a retry. The permit is no longer wanted.
    Failed {
        /// Whether the receiver has refused for a reason that passes soon.
        busy: bool,
    },
    /// The sender reads no more pages: the transfer is being cancelled, or has ended. The permit is no longer wanted.
    Abandoned,
}

/// Output of [`Pacing::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Request a permit; answer [`Event::Permit`] at once, and whenever its state changes. Release it as soon as
    /// [`Pacing::wants_permit`] returns false.
    RequestPermit,
    /// Start the sender; answer [`Event::Started`].
    Start,
    /// Tell the sender whether it must hold.
    Hold(bool),
    /// Give the sender the retry that it asked for.
    Retry,
}

/// The reason why a transfer does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// An operator has paused this node.
    PausedHere,
    /// An operator has paused the receiver.
    PausedThere,
    /// No permit is granted.
    Permit,
    /// A retry is due later.
    Retry,
    /// The token bucket is empty.
    Rate,
}

/// The pace of one outgoing transfer.
#[derive(Clone, Debug, Default)]
pub struct Pacing {
    started: bool,
    /// The permit that was requested, and whether it is granted.
    permit: Option<bool>,
    paused_here: bool,
    paused_there: bool,
    /// The value of the last `Hold`.
    held: bool,
    retry_at: Option<Duration>,
    /// True if the retry is due and waits for the permit, which wakes the driver.
    retry_blocked: bool,
    failures: u32,
    last_failure: Option<Duration>,
    page: Option<PageRequest>,
    /// The time until which the bucket is empty.
    page_at: Option<Duration>,
}

impl Pacing {
    /// Create the pace of a transfer that starts after a pause, because this node has cancelled this number of
    /// consecutive transfers of the partition.
    pub fn after_failures(failures: u32, now: Duration) -> Self {
        let retry_at = (failures > 0).then(|| now + pause_after(failures));
        Self { retry_at, ..Self::default() }
    }

    /// Handle an event.
    pub fn handle(&mut self, event: Event, now: Duration) {
        match event {
            Event::Paused { here, there } => (self.paused_here, self.paused_there) = (here, there),
            Event::Permit { granted } => {
                if let Some(permit) = &mut self.permit {
                    *permit = granted;
                }
            }
            Event::PageWanted(page) => self.page = Some(page),
            Event::Started => (self.started, self.retry_at) = (true, None),
            Event::Progress => {
                if self.last_failure.is_some_and(|last| now.saturating_sub(last) > FORGET_AFTER) {
                    (self.failures, self.last_failure) = (0, None);
                }
            }
            Event::Failed { busy } => {
                self.permit = None;
                self.failures += 1;
                self.last_failure = Some(now);
                let longest = if busy { LONGEST_PAUSE_WHILE_BUSY } else { LONGEST_PAUSE };
                self.retry_at = Some(now + pause_after(self.failures).min(longest));
                self.retry_blocked = false;
            }
            Event::Abandoned => {
                self.permit = None;
                (self.page, self.page_at) = (None, None);
            }
        }
    }

    /// Return the next effect to carry out now, if any. `urgent` tells whether the sender is urgent.
    pub fn next(&mut self, now: Duration, urgent: bool) -> Option<Effect> {
        let backs_off = self.retry_at.is_some_and(|due| due > now);
        if self.permit.is_none() && !urgent && !backs_off {
            self.permit = Some(false);
            return Some(Effect::RequestPermit);
        }
        let holds = self.holds();
        let due = self.retry_at.is_some() && !backs_off;
        if !self.started {
            self.retry_blocked = due;
            if holds || backs_off {
                return None;
            }
            return Some(Effect::Start);
        }
        if holds != self.held {
            self.held = holds;
            return Some(Effect::Hold(holds));
        }
        if due && (urgent || !holds) {
            self.retry_at = None;
            return Some(Effect::Retry);
        }
        self.retry_blocked |= due;
        None
    }

    /// Return true if the transfer wants the permit that it has requested.
    pub fn wants_permit(&self) -> bool {
        self.permit.is_some()
    }

    /// Return the page that the sender wants, if the rate allows it to be read now.
    pub fn take_page(&mut self, limiter: &mut SendLimiter, now: Duration) -> Option<PageRequest> {
        self.page.as_ref()?;
        self.page_at = limiter.take_page(now).err().map(|wait| now + wait);
        if self.page_at.is_some() { None } else { self.page.take() }
    }

    /// Return the time at which the driver must wake even without an event.
    pub fn wake_at(&self) -> Option<Duration> {
        let retry = self.retry_at.filter(|_| !self.retry_blocked);
        retry.into_iter().chain(self.page_at).min()
    }

    /// Return the time of the next attempt, if it is in the future.
    pub fn retry_at(&self, now: Duration) -> Option<Duration> {
        self.retry_at.filter(|due| *due > now)
    }

    /// Return the reason why the transfer does not run; `None` if it runs. `urgent` tells whether the sender is
    /// urgent.
    pub fn waits_for(&self, now: Duration, urgent: bool) -> Option<Wait> {
        if urgent {
            return None;
        }
        if self.paused_here {
            return Some(Wait::PausedHere);
        }
        if self.paused_there {
            return Some(Wait::PausedThere);
        }
        if !self.started && self.retry_at.is_none() {
            return Some(Wait::Permit);
        }
        if self.retry_at(now).is_some() {
            return Some(Wait::Retry);
        }
        if self.holds() {
            return Some(Wait::Permit);
        }
        self.page_at.map(|_| Wait::Rate)
    }

    fn holds(&self) -> bool {
        self.paused_here || self.paused_there || self.permit != Some(true)
    }
}

/// Return true if the reason of a refusal passes soon, so that an early retry is worthwhile.
pub fn is_busy(refused: Option<&Refused>) -> bool {
    matches!(refused, Some(Refused::Busy | Refused::Module { .. }))
}

#[cfg(test)]
mod tests;
