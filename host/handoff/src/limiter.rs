//! The node's send limiter: core's [`SendLimiter`](core::SendLimiter) with a clock, and permits that wake their
//! holders.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::handoff::limiter::{self as core, Effect, PermitId};
use annulus_core::handoff::pacing::{Pacing, PageRequest};
use annulus_core::state::EffectiveLimits;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// The permits and the rate that all outgoing transfers of a node share. Cheap to clone.
#[derive(Clone)]
pub(super) struct SendLimiter {
    inner: Arc<Inner>,
}

struct Inner {
    began: Instant,
    state: Mutex<State>,
}

struct State {
    core: core::SendLimiter,
    /// The notification of each permit's holder. Bounded: each outgoing transfer has at most one permit.
    holders: BTreeMap<PermitId, watch::Sender<bool>>,
}

impl State {
    fn carry_out(&self, effects: Vec<Effect>) {
        for effect in effects {
            let (permit, granted) = match effect {
                Effect::Grant(permit) => (permit, true),
                Effect::Revoke(permit) => (permit, false),
            };
            if let Some(holder) = self.holders.get(&permit) {
                holder.send_replace(granted);
            }
        }
    }
}

/// A permit, granted or not. Released when dropped.
pub(super) struct Permit {
    limiter: SendLimiter,
    id: PermitId,
    granted: watch::Receiver<bool>,
}

impl SendLimiter {
    pub(super) fn new(limits: EffectiveLimits) -> Self {
        let core = core::SendLimiter::new(limits, Duration::ZERO);
        let state = Mutex::new(State { core, holders: BTreeMap::new() });
        Self { inner: Arc::new(Inner { began: Instant::now(), state }) }
    }

    /// Return the present time, as core's limiter and [`Pacing`] count it.
    pub(super) fn now(&self) -> Duration {
        self.inner.began.elapsed()
    }

    /// Convert a time of [`SendLimiter::now`] to an instant.
    pub(super) fn instant(&self, time: Duration) -> Instant {
        self.inner.began + time
    }

    /// Apply new limits.
    pub(super) fn set(&self, limits: EffectiveLimits) {
        let mut state = self.inner.state.lock();
        let effects = state.core.set(limits, self.now());
        state.carry_out(effects);
    }

    /// Request a permit.
    pub(super) fn request(&self) -> Permit {
        let mut state = self.inner.state.lock();
        let (id, effects) = state.core.request();
        let (holder, granted) = watch::channel(false);
        state.holders.insert(id, holder);
        state.carry_out(effects);
        Permit { limiter: self.clone(), id, granted }
    }

    /// Take the page that a transfer wants, if the rate allows it.
    pub(super) fn take_page(&self, pacing: &mut Pacing) -> Option<PageRequest> {
        pacing.take_page(&mut self.inner.state.lock().core, self.now())
    }

    /// Correct the tokens that a page has used to the page's actual size.
    pub(super) fn settle_page(&self, bytes: u64) {
        self.inner.state.lock().core.settle_page(bytes);
    }

    /// Count the items of a write.
    pub(super) fn spend(&self, bytes: u64) {
        self.inner.state.lock().core.spend(bytes);
    }
}

impl Permit {
    pub(super) fn is_granted(&self) -> bool {
        *self.granted.borrow()
    }

    /// Wait until the permit is granted or revoked.
    pub(super) async fn changed(&mut self) {
        // Cannot fail: the limiter holds the other end as long as this permit exists.
        let _ = self.granted.changed().await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limiter.inner.state.lock();
        state.holders.remove(&self.id);
        let effects = state.core.release(self.id);
        state.carry_out(effects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(outgoing: u16, paused: bool) -> EffectiveLimits {
        EffectiveLimits { outgoing, incoming: 1, bytes_per_second: None, paused }
    }

    fn granted(permits: &[Permit]) -> Vec<usize> {
        (0..permits.len()).filter(|at| permits[*at].is_granted()).collect()
    }

    #[tokio::test]
    async fn permits_are_granted_in_order_and_a_limit_counts_at_once() {
        let limiter = SendLimiter::new(limits(2, false));
        let mut permits: Vec<Permit> = (0..4).map(|_| limiter.request()).collect();
        assert_eq!(granted(&permits), [0, 1]);
        drop(permits.remove(0));
        assert_eq!(granted(&permits), [0, 1], "the second and the third");
        permits[1].granted.mark_unchanged();
        limiter.set(limits(1, false));
        assert_eq!(granted(&permits), [0]);
        permits[1].changed().await;
        limiter.set(limits(9, true));
        assert_eq!(granted(&permits), [] as [usize; 0], "paused");
        limiter.set(limits(9, false));
        assert_eq!(granted(&permits), [0, 1, 2]);
        // A permit that is released and requested again comes behind all others.
        limiter.set(limits(1, false));
        drop(permits.remove(0));
        permits.push(limiter.request());
        assert_eq!(granted(&permits), [0]);
    }
}
