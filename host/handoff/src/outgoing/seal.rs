//! Sealing a partition's vnodes, without keeping all of them silent for the slowest.
//!
//! Requests wait from the first vnode's seal to the flip. So the vnodes are asked first whether they
//! come to their next message at all, and a seal that not all have heard a moment later is lifted and
//! tried again: a command that runs for seconds in one module costs the others a moment, not those
//! seconds. A vnode that is always busy is waited for in the end, up to its call limit.

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

/// The vnodes are waited for before a seal for as long as a call of a guest may take, and for this time
/// more.
const READY_SLACK: Duration = Duration::from_secs(5);
/// A seal that not all vnodes have heard after this time is lifted.
const LIFT_AFTER: Duration = Duration::from_millis(250);
/// So many seals of a transfer are lifted; the next one waits until all have heard it.
const LIFTS: u32 = 8;

/// How far the seal of a transfer is.
#[derive(Default)]
pub(super) struct Seal {
    /// Counts the seals: what a vnode says of one that was lifted is not said of the next.
    round: u64,
    lifted: u32,
    /// Longest that the vnodes are waited for before it.
    ready_limit: Duration,
    step: Step,
}

#[derive(Default)]
enum Step {
    #[default]
    Idle,
    /// The vnodes are asked; answers one that does not come to it.
    Asking(BoxFuture<'static, Option<ModuleUid>>),
    /// These have not said that they are sealed.
    Told { missing: BTreeSet<ModuleUid>, lift_at: Option<Instant> },
}

/// What comes next.
pub(super) enum Turn {
    Ready,
    TooSlow(ModuleUid),
    Lift,
}

impl Seal {
    /// Asks the vnodes whether they come to their next message. `call_limit`: the longest of their guests'.
    pub(super) fn ask(&mut self, vnodes: Vec<VnodeHandle>, call_limit: Duration) {
        let limit = call_limit + READY_SLACK;
        self.ready_limit = limit;
        let asked: Vec<_> = vnodes
            .into_iter()
            .filter(|_| !mutants::on(Mutant::SealTheBusy))
            .map(|vnode| {
                let (answer, here) = oneshot::channel();
                // One that has ended holds up nobody.
                let there = vnode.tell(Control::Ping(answer));
                async move { (there && timeout(limit, here).await.is_err()).then_some(vnode.module) }
            })
            .collect();
        self.step = Step::Asking(Box::pin(async move { join_all(asked).await.into_iter().flatten().next() }));
    }

    /// Returns when the next step is due.
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

    /// A vnode says that it is sealed, of this round. Answers whether that counts.
    pub(super) fn heard(&mut self, module: ModuleUid, round: u64) -> bool {
        match &mut self.step {
            Step::Told { missing, .. } if round == self.round => {
                missing.remove(&module);
                true
            }
            _ => false,
        }
    }

    /// Is the partition silent? Then this seal is done with.
    pub(super) fn take_if_all(&mut self) -> bool {
        let all = matches!(&self.step, Step::Told { missing, .. } if missing.is_empty());
        if all {
            self.step = Step::Idle;
        }
        all
    }
}

impl Driver {
    /// Takes the next step of a seal.
    pub(super) async fn go_on_sealing(&mut self, turn: Turn) {
        let (partition, transfer) = (self.task.partition, self.task.transfer);
        let (cluster, master) = (&self.handoff.inner.cluster, &self.handoff.inner.master);
        let name = |module: &ModuleUid| {
            let view = cluster.view();
            view.state.modules.get(module).map_or_else(String::new, |module| module.name.clone())
        };
        match turn {
            // Asked while the vnodes were: the stream has ended since, and says so itself.
            Turn::Ready if !self.machine.wants_seal() => self.refuse_seal().await,
            Turn::Ready => {
                let round = self.seal.round + 1;
                let heard = cluster.heard_from_leader_within(LEADER_WITHIN);
                annulus_ground::point("handoff: seals").await;
                let told = if heard { master.seal(partition, transfer, round) } else { None };
                let Some(vnodes) = told else {
                    self.progress.fail(if heard {
                        "the partition goes elsewhere by now, so it is not sealed"
                    } else {
                        "no leader was heard from lately, so the partition is not sealed"
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
                    "module {name} did not come to its next message within {limit:?}, so the partition \
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
    fn what_is_said_of_a_lifted_seal_does_not_count_for_the_next() {
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
