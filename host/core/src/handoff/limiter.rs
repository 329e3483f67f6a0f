//! Send permits and the send rate of one node.
//!
//! A transfer that wants to send requests a permit. Permits are granted in the order of the requests, to the
//! first `limit` of them. A transfer that backs off releases its permit and requests a new one later, behind all
//! others, so a partition that keeps failing does not block the rest. A lower limit revokes the permits that were
//! requested last, a pause revokes all of them; a revoked permit keeps its place and is granted again from there.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::state::EffectiveLimits;

use super::rate::TokenBucket;

/// A place in the queue for permits. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PermitId(u64);

/// A permit whose state has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The holder may send.
    Grant(PermitId),
    /// The holder must stop reading pages until the permit is granted again.
    Revoke(PermitId),
}

/// The permits and the token bucket that all outgoing transfers of a node share.
///
/// Times are measured from any fixed moment, the same one for all calls.
#[derive(Clone, Debug)]
pub struct SendLimiter {
    limit: usize,
    next: u64,
    /// The permits in the order of the requests, and whether each is granted. The granted ones are a prefix of at
    /// most `limit`.
    permits: BTreeMap<PermitId, bool>,
    bucket: TokenBucket,
}

impl SendLimiter {
    /// Create a limiter without requests.
    pub fn new(limits: EffectiveLimits, now: Duration) -> Self {
        let bucket = TokenBucket::new(limits.bytes_per_second, now);
        Self { limit: most_granted(limits), next: 0, permits: BTreeMap::new(), bucket }
    }

    /// Apply new limits at once.
    pub fn set(&mut self, limits: EffectiveLimits, now: Duration) -> Vec<Effect> {
        self.limit = most_granted(limits);
        self.bucket.set_rate(limits.bytes_per_second, now);
        self.settle_permits()
    }

    /// Request a permit, behind all earlier requests.
    pub fn request(&mut self) -> (PermitId, Vec<Effect>) {
        let permit = PermitId(self.next);
        self.next += 1;
        self.permits.insert(permit, false);
        (permit, self.settle_permits())
    }

    /// Release a permit, granted or not.
    pub fn release(&mut self, permit: PermitId) -> Vec<Effect> {
        self.permits.remove(&permit);
        self.settle_permits()
    }

    /// Take the tokens for one page.
    ///
    /// # Errors
    /// The time until the bucket has tokens again, if it is empty.
    pub fn take_page(&mut self, now: Duration) -> Result<(), Duration> {
        self.bucket.take_page(now)
    }

    /// Correct the tokens that [`SendLimiter::take_page`] took to the real size of the page.
    pub fn settle_page(&mut self, bytes: u64) {
        self.bucket.settle(bytes);
    }

    /// Count the items of a write, which are never held back.
    pub fn spend(&mut self, bytes: u64) {
        self.bucket.spend(bytes);
    }

    fn settle_permits(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (at, (permit, granted)) in self.permits.iter_mut().enumerate() {
            let grant = at < self.limit;
            if std::mem::replace(granted, grant) != grant {
                effects.push(if grant { Effect::Grant(*permit) } else { Effect::Revoke(*permit) });
            }
        }
        debug_assert!(self.permits.values().filter(|granted| **granted).count() <= self.limit);
        effects
    }
}

fn most_granted(limits: EffectiveLimits) -> usize {
    if limits.paused { 0 } else { usize::from(limits.outgoing) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn limits(outgoing: u16, paused: bool) -> EffectiveLimits {
        EffectiveLimits { outgoing, incoming: 1, bytes_per_second: None, paused }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Request,
        /// Of the permit at this place.
        Release(usize),
        Set(u16, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Request),
            2 => (0..8_usize).prop_map(Step::Release),
            1 => (0..5_u16, any::<bool>()).prop_map(|(limit, paused)| Step::Set(limit, paused)),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// The granted permits follow from the effects alone: they are never more than the limit, none in a pause,
        /// and always those that were requested first.
        #[test]
        fn the_oldest_requests_hold_the_permits_and_never_more_than_the_limit(steps in steps()) {
            let mut limit = 2;
            let mut limiter = SendLimiter::new(limits(2, false), Duration::ZERO);
            let (mut queue, mut granted) = (Vec::new(), BTreeSet::new());
            for step in steps {
                let effects = match step {
                    Step::Request => {
                        let (permit, effects) = limiter.request();
                        queue.push(permit);
                        effects
                    }
                    Step::Release(at) if at < queue.len() => {
                        let permit = queue.remove(at);
                        granted.remove(&permit);
                        limiter.release(permit)
                    }
                    Step::Release(_) => Vec::new(),
                    Step::Set(outgoing, paused) => {
                        limit = if paused { 0 } else { usize::from(outgoing) };
                        limiter.set(limits(outgoing, paused), Duration::ZERO)
                    }
                };
                for effect in effects {
                    match effect {
                        Effect::Grant(permit) => prop_assert!(granted.insert(permit), "granted twice"),
                        Effect::Revoke(permit) => prop_assert!(granted.remove(&permit), "was not granted"),
                    }
                }
                let first: BTreeSet<PermitId> = queue.iter().take(limit).copied().collect();
                prop_assert_eq!(&granted, &first);
            }
        }
    }

    #[test]
    fn a_lower_limit_revokes_the_youngest_permit_and_a_release_grants_the_next() {
        let mut limiter = SendLimiter::new(limits(2, false), Duration::ZERO);
        let permits: Vec<PermitId> = (0..3).map(|_| limiter.request().0).collect();
        assert_eq!(limiter.set(limits(1, false), Duration::ZERO), [Effect::Revoke(permits[1])]);
        assert_eq!(limiter.release(permits[0]), [Effect::Grant(permits[1])]);
        assert_eq!(limiter.set(limits(9, true), Duration::ZERO), [Effect::Revoke(permits[1])]);
        let granted = [Effect::Grant(permits[1]), Effect::Grant(permits[2])];
        assert_eq!(limiter.set(limits(9, false), Duration::ZERO), granted);
    }
}
