//! What keeps a transfer from sending: its turn, a pause, the rate, a try that is due later.

use std::future::pending;
use std::time::Duration;

use annulus_core::handoff::TransferState;
use annulus_core::handoff::message::Refused;
use annulus_core::handoff::sender::Event;
use annulus_core::ids::ModuleUid;
use annulus_vnode::Reading;
use tokio::time::{Instant, sleep_until};

use super::{Driver, pause_after};
use crate::turns::Ticket;

/// Longest pause after a receiver has said that it is busy or has not compiled a module yet: both
/// pass, and asking costs little.
const LONGEST_WHILE_BUSY: Duration = Duration::from_secs(1);
/// Failures are forgotten after so long of going well.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// A page that the machine wants.
pub(super) struct WantedPage {
    pub(super) attempt: u64,
    pub(super) module: ModuleUid,
    pub(super) after: Option<Vec<u8>>,
}

/// What a driver waits for before the machine may go on.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) started: bool,
    pub(super) ticket: Option<Ticket>,
    pub(super) paused_here: bool,
    pub(super) paused_there: bool,
    /// What the machine was told last.
    held: bool,
    /// The machine has asked for a `Retry`, and when it gets it.
    retry: Option<Instant>,
    /// It is due, and waits for a turn.
    retry_blocked: bool,
    failures: u32,
    last_failure: Option<Instant>,
    /// A page that may not be read yet.
    pub(super) page: Option<WantedPage>,
    page_at: Option<Instant>,
    over: bool,
}

impl Waiting {
    /// Returns when something may be different.
    pub(super) async fn changed(&mut self) {
        let retry = self.retry.filter(|_| !self.retry_blocked);
        let due = retry.into_iter().chain(self.page_at).min();
        let time = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        let turn = async {
            match &mut self.ticket {
                Some(ticket) => ticket.changed().await,
                None => pending().await,
            }
        };
        tokio::select! { () = time => {}, () = turn => {} }
    }

    /// A failure: the turn goes to others, and after a while it is tried again.
    pub(super) fn pause(&mut self, refused: Option<&Refused>) {
        self.ticket = None;
        self.failures += 1;
        self.last_failure = Some(Instant::now());
        let pause = pause_after(self.failures);
        let longest = match refused {
            Some(Refused::Busy | Refused::Module { .. }) => LONGEST_WHILE_BUSY,
            _ => pause,
        };
        (self.retry, self.retry_blocked) = (Some(Instant::now() + pause.min(longest)), false);
    }

    /// The transfer waits for its own cancel.
    pub(super) fn give_up(&mut self) {
        (self.ticket, self.page, self.page_at, self.over) = (None, None, None, true);
        (self.retry, self.retry_blocked) = (None, false);
    }

    /// The transfers before it were given up.
    pub(super) fn begin_after(&mut self, pause: Duration) {
        self.retry = Some(Instant::now() + pause);
    }

    pub(super) fn went_well(&mut self) {
        if self.last_failure.is_some_and(|last| last.elapsed() > FORGET_AFTER) {
            (self.failures, self.last_failure) = (0, None);
        }
    }

    fn holds(&self) -> bool {
        self.paused_here || self.paused_there || self.ticket.as_ref().is_none_or(|ticket| !ticket.has_turn())
    }

    fn retry_is_due(&self) -> bool {
        self.retry.is_some_and(|due| due <= Instant::now())
    }
}

impl Driver {
    /// Does what has become possible. False if this node does not hold the partition any more.
    pub(super) async fn go_on(&mut self) -> bool {
        if self.waiting.over {
            return true;
        }
        let urgent = self.machine.is_urgent();
        let backs_off = self.waiting.retry.is_some() && !self.waiting.retry_is_due();
        if self.waiting.ticket.is_none() && !urgent && !backs_off {
            self.waiting.ticket = Some(self.handoff.inner.turns.ask());
        }
        let holds = self.waiting.holds();
        if !self.waiting.started {
            self.waiting.retry_blocked = self.waiting.retry_is_due();
            if holds || backs_off {
                return true;
            }
            self.waiting.retry = None;
            return self.start().await;
        }
        if holds != self.waiting.held {
            self.waiting.held = holds;
            self.feed(Event::Held(holds)).await;
        }
        if self.waiting.retry_is_due() {
            if urgent || !holds {
                self.waiting.retry = None;
                self.feed(Event::Retry).await;
            } else {
                self.waiting.retry_blocked = true;
            }
        }
        self.read_if_allowed();
        true
    }

    /// Reads the page that is wanted, if the rate allows it.
    pub(super) fn read_if_allowed(&mut self) {
        let Some(page) = self.waiting.page.take() else { return };
        let (master, turns) = (&self.handoff.inner.master, &self.handoff.inner.turns);
        self.waiting.page_at = None;
        if let Err(wait) = turns.take_page() {
            (self.waiting.page, self.waiting.page_at) = (Some(page), Some(Instant::now() + wait));
            return;
        }
        let WantedPage { attempt, module, after } = page;
        match master.read_page(self.task.partition, self.task.transfer, module, attempt, after) {
            Reading::Coming => {}
            // One that starts from here on tells of all that it writes.
            Reading::NoItems => {
                turns.settle_page(0);
                let page = Event::Page { attempt, module, items: Vec::new(), next: None };
                let _ = self.later.send(page);
            }
            // The log says so too, and ends this driver.
            Reading::Replaced => turns.settle_page(0),
        }
    }

    /// Tells those who look.
    pub(super) fn show(&self) {
        let reason = self.waits_for();
        let retry = self.waiting.retry.filter(|due| *due > Instant::now());
        let state = match self.machine.state() {
            TransferState::Running if reason.is_some() && self.waiting.page_at.is_none() => {
                TransferState::Waiting
            }
            state => state,
        };
        self.progress.set(&self.machine, state, reason, retry);
    }

    /// In words that `transfers` shows.
    fn waits_for(&self) -> Option<String> {
        let waiting = &self.waiting;
        let inner = &self.handoff.inner;
        if self.machine.is_finished() {
            return None;
        }
        let hold = || {
            Some(if waiting.paused_here {
                "paused".to_owned()
            } else if waiting.paused_there {
                format!("paused at {}", self.target)
            } else {
                "turn here".to_owned()
            })
        };
        let reachable = || inner.cluster.liveness().is_up(self.taker);
        let receiver = || Some(format!("receiver {} is down", self.target));
        if waiting.over {
            return Some("retry".to_owned());
        }
        if (waiting.paused_here || waiting.paused_there) && !self.machine.is_urgent() {
            return hold();
        }
        if !waiting.started && waiting.retry.is_none() {
            return hold();
        }
        if self.machine.is_urgent() {
            return if reachable() { None } else { receiver() };
        }
        if waiting.retry.is_some() && !waiting.retry_is_due() {
            return match self.machine.refusal() {
                Some(Refused::Busy) => Some(format!("turn at {}", self.target)),
                Some(Refused::NotPending) => Some(format!("log: it is not pending at {}", self.target)),
                Some(Refused::Module { module, .. }) => {
                    let view = inner.cluster.view();
                    let name = view.state.modules.get(module).map_or("", |module| module.name.as_str());
                    Some(format!("module {name} at {}", self.target))
                }
                _ if !reachable() => receiver(),
                _ => Some("retry".to_owned()),
            };
        }
        if waiting.holds() {
            return hold();
        }
        waiting.page_at.map(|_| "rate".to_owned())
    }
}
