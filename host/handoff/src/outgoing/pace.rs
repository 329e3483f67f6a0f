//! Carries out the effects of core's [`Pacing`](annulus_core::handoff::pacing::Pacing), and describes its waits.

use std::future::pending;

use annulus_core::handoff::TransferState;
use annulus_core::handoff::message::Refused;
use annulus_core::handoff::pacing::{self, PageRequest, Wait};
use annulus_core::handoff::sender::Event;
use annulus_vnode::Reading;
use tokio::time::{Instant, sleep_until};

use super::Driver;
use crate::limiter::Permit;

/// Wait until the permit changes, or until the time at which the pacing has its next step.
pub(super) async fn due(permit: &mut Option<Permit>, wake_at: Option<Instant>) {
    let time = async {
        match wake_at {
            Some(due) => sleep_until(due).await,
            None => pending().await,
        }
    };
    let changed = async {
        match permit {
            Some(permit) => permit.changed().await,
            None => pending().await,
        }
    };
    tokio::select! { () = time => {}, () = changed => {} }
}

impl Driver {
    /// Report an event to the pacing, and release the permit once it is not wanted.
    pub(super) fn pace(&mut self, event: pacing::Event) {
        self.pacing.handle(event, self.handoff.inner.limiter.now());
        if !self.pacing.wants_permit() {
            self.permit = None;
        }
    }

    /// Run all steps that the pacing allows now. Return false if this node no longer holds the partition.
    pub(super) async fn go_on(&mut self) -> bool {
        loop {
            if let Some(permit) = &self.permit {
                let granted = permit.is_granted();
                self.pace(pacing::Event::Permit { granted });
            }
            debug_assert_eq!(self.permit.is_some(), self.pacing.wants_permit());
            let now = self.handoff.inner.limiter.now();
            match self.pacing.next(now, self.machine.is_urgent()) {
                None => break,
                Some(pacing::Effect::RequestPermit) => {
                    self.permit = Some(self.handoff.inner.limiter.request());
                }
                Some(pacing::Effect::Start) => {
                    if !self.start().await {
                        return false;
                    }
                }
                Some(pacing::Effect::Hold(hold)) => self.feed(Event::Held(hold)).await,
                Some(pacing::Effect::Retry) => self.feed(Event::Retry).await,
            }
        }
        self.read_if_allowed();
        true
    }

    /// Read the page that the machine wants, if the rate allows it.
    pub(super) fn read_if_allowed(&mut self) {
        let (master, limiter) = (&self.handoff.inner.master, &self.handoff.inner.limiter);
        let Some(page) = limiter.take_page(&mut self.pacing) else { return };
        let PageRequest { attempt, module, after } = page;
        match master.read_page(self.task.partition, self.task.transfer, module, attempt, after) {
            Reading::Coming => {}
            // A vnode that starts later forwards all of its writes.
            Reading::NoItems => {
                limiter.settle_page(0);
                let page = Event::Page { attempt, module, items: Vec::new(), next: None };
                let _ = self.later.send(page);
            }
            Reading::NotReady => {
                limiter.settle_page(0);
                let why = "the module has items on disk and cannot run here yet".to_owned();
                let _ = self.later.send(Event::PageFailed { attempt, module, why });
            }
            // The log has replaced the transfer, and ends this driver.
            Reading::Replaced => limiter.settle_page(0),
        }
    }

    /// Publish the state of the transfer for `annulus transfers`.
    pub(super) fn show(&self) {
        let limiter = &self.handoff.inner.limiter;
        let wait = self.pacing.waits_for(limiter.now(), self.machine.is_urgent());
        let reason = if self.machine.is_finished() { None } else { self.in_words(wait) };
        let retry = self.pacing.retry_at(limiter.now()).map(|due| limiter.instant(due));
        let state = match self.machine.state() {
            TransferState::Running if reason.is_some() && wait != Some(Wait::Rate) => TransferState::Waiting,
            state => state,
        };
        self.progress.set(&self.machine, state, reason, retry);
    }

    /// Return the reason why the transfer waits, as `annulus transfers` shows it.
    fn in_words(&self, wait: Option<Wait>) -> Option<String> {
        let inner = &self.handoff.inner;
        let reachable = inner.cluster.liveness().is_up(self.successor);
        let down = || format!("receiver {} is down", self.target);
        // An urgent transfer waits for its receiver only.
        if self.machine.is_urgent() {
            return (!reachable).then(down);
        }
        let words = match wait? {
            Wait::PausedHere => "paused".to_owned(),
            Wait::PausedThere => format!("paused at {}", self.target),
            Wait::Permit => "turn here".to_owned(),
            Wait::Rate => "rate".to_owned(),
            Wait::Retry => match self.machine.refusal() {
                Some(Refused::Busy) => format!("turn at {}", self.target),
                Some(Refused::NotPending) => format!("log: it is not pending at {}", self.target),
                Some(Refused::Module { module, .. }) => {
                    let view = inner.cluster.view();
                    let name = view.state.modules.get(module).map_or("", |module| module.name.as_str());
                    format!("module {name} at {}", self.target)
                }
                _ if !reachable => down(),
                _ => "retry".to_owned(),
            },
        };
        Some(words)
    }
}
