//! Seals the vnodes of a partition together.
//!
//! Requests wait from the first vnode's seal to the flip, so a seal must not wait for the slowest vnode. The driver
//! pings all vnodes first. Once all have answered, it seals them; if some have not confirmed within [`LIFT_AFTER`], it
//! lifts the seal and tries again later. So a command that runs for seconds in one module delays the other modules only
//! for a moment. After [`LIFTS`] such attempts, the seal waits for a busy vnode, up to its call limit.

use std::collections::BTreeSet;
use std::future::pending;
use std::time::Duration;

use annulus_core::handoff::sender::Event;
use annulus_core::ids::ModuleUid;
use annulus_core::mutants::{self, Mutant};
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Driver, LEADER_WITHIN};
use annulus_vnode::{Control, VnodeHandle};

/// The time limit for the vnodes' answers to the ping, in addition to the longest call limit.
const READY_SLACK: Duration = Duration::from_secs(5);
/// A seal that not all vnodes have confirmed within this time is lifted.
const LIFT_AFTER: Duration = Duration::from_millis(250);
/// The maximum number of seals of a transfer that are lifted. The next one waits for all vnodes.
const LIFTS: u32 = 8;

/// The progress of sealing one transfer.
#[derive(Default)]
pub(super) struct Seal {
    /// The number of the seal. A vnode's confirmation of a lifted seal does not count for the next one.
    round: u64,
    lifted: u32,
    /// The time limit for the vnodes' answers to the ping.
    ready_limit: Duration,
    step: Step,
}

#[derive(Default)]
enum Step {
    #[default]
    Idle,
    /// The vnodes were pinged. The future resolves to one that has not answered in time, if any.
    Asking(BoxFuture<'static, Option<ModuleUid>>),
    /// The vnodes were asked to seal. Those in `missing` have not confirmed yet.
    Told { missing: BTreeSet<ModuleUid>, lift_at: Option<Instant> },
}

/// The outcome of a step.
pub(super) enum Turn {
    Ready,
    TooSlow(ModuleUid),
    Lift,
}

impl Seal {
    /// Ping the vnodes. `call_limit` is the longest call limit of their guests.
    pub(super) fn ask(&mut self, vnodes: Vec<VnodeHandle>, call_limit: Duration) {
        debug_assert!(matches!(self.step, Step::Idle), "one seal at a time");
        let limit = call_limit + READY_SLACK;
        self.ready_limit = limit;
        let asked: Vec<_> = vnodes
            .into_iter()
            .filter(|_| !mutants::on(Mutant::SealTheBusy))
            .map(|vnode| {
                let (answer, here) = oneshot::channel();
                // A vnode that has ended needs no seal.
                let there = vnode.tell(Control::Ping(answer));
                async move { (there && timeout(limit, here).await.is_err()).then_some(vnode.module) }
            })
            .collect();
        self.step = Step::Asking(Box::pin(async move { join_all(asked).await.into_iter().flatten().next() }));
    }

    /// Wait for the next step.
    pub(super) async fn changed(&mut self) -> Turn {
        match &mut self.step {
            Step::Asking(asked) => match asked.await {
                None => Turn::Ready,
                Some(module) => Turn::TooSlow(module),
            },
            Step::Told { lift_at: Some(at), .. } => {
                sleep_until(*at).await;
                Turn::Lift
            }
            Step::Idle | Step::Told { lift_at: None, .. } => pending().await,
        }
    }

    /// Note a vnode's confirmation. Return false if it belongs to another round.
    pub(super) fn heard(&mut self, module: ModuleUid, round: u64) -> bool {
        match &mut self.step {
            Step::Told { missing, .. } if round == self.round => {
                missing.remove(&module);
                true
            }
            _ => false,
        }
    }

    /// Complete the seal, and return true, if all vnodes have confirmed it.
    pub(super) fn take_if_all(&mut self) -> bool {
        let all = matches!(&self.step, Step::Told { missing, .. } if missing.is_empty());
        if all {
            self.step = Step::Idle;
        }
        all
    }
}

impl Driver {
    /// Take the next step of a seal.
    pub(super) async fn go_on_sealing(&mut self, turn: Turn) {
        let (partition, transfer) = (self.task.partition, self.task.transfer);
        let (cluster, master) = (&self.handoff.inner.cluster, &self.handoff.inner.master);
        let name = |module: &ModuleUid| {
            let view = cluster.view();
            view.state.modules.get(module).map_or_else(String::new, |module| module.name.clone())
        };
        match turn {
            // The stream has ended since the ping, and the machine no longer wants the seal.
            Turn::Ready if !self.machine.wants_seal() => self.refuse_seal().await,
            Turn::Ready => {
                let round = self.seal.round + 1;
                let heard = cluster.heard_from_leader_within(LEADER_WITHIN);
                annulus_ground::point("handoff: seals").await;
                let told = if heard { master.seal(partition, transfer, round) } else { None };
                let Some(vnodes) = told else {
                    self.progress.fail(if heard {
                        "the partition is no longer part of this transfer, so it is not sealed"
                    } else {
                        "there was no recent contact with a leader, so the partition is not sealed"
                    });
                    return self.refuse_seal().await;
                };
                let lifts = self.seal.lifted < LIFTS && !mutants::on(Mutant::SealTheBusy);
                let lift_at = lifts.then(|| Instant::now() + LIFT_AFTER);
                let missing = vnodes.into_iter().collect();
                (self.seal.round, self.seal.step) = (round, Step::Told { missing, lift_at });
                self.counts.clear();
                if let Some(sealed) = self.sealed_if_all().await {
                    self.feed(sealed).await;
                }
            }
            Turn::TooSlow(module) => {
                let (name, limit) = (name(&module), self.seal.ready_limit);
                self.progress.fail(&format!(
                    "a vnode of module {name} did not answer within {limit:?}, so the partition \
                     is not sealed"
                ));
                self.refuse_seal().await;
            }
            Turn::Lift => {
                let late = match &self.seal.step {
                    Step::Told { missing, .. } => missing.iter().map(name).collect::<Vec<_>>().join(", "),
                    _ => String::new(),
                };
                self.progress.fail(&format!(
                    "the seal was lifted after {LIFT_AFTER:?}, because {late} was busy with a command"
                ));
                self.seal.lifted += 1;
                master.unseal(partition, transfer);
                self.refuse_seal().await;
            }
        }
    }

    async fn refuse_seal(&mut self) {
        self.seal.step = Step::Idle;
        self.feed(Event::SealRefused).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_of_a_lifted_seal_does_not_count_for_the_next_one() {
        let (one, other) = (ModuleUid(1), ModuleUid(2));
        let told =
            |missing: &[ModuleUid]| Step::Told { missing: missing.iter().copied().collect(), lift_at: None };
        let mut seal = Seal { round: 2, step: told(&[one, other]), ..Seal::default() };
        assert!(!seal.heard(one, 1) && seal.heard(other, 2));
        assert!(!seal.take_if_all());
        assert!(seal.heard(one, 2) && seal.take_if_all());
        assert!(!seal.heard(one, 2) && !seal.take_if_all(), "once");
    }
}
