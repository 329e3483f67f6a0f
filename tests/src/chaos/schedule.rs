//! What happens when: drawn from a seed, before anything happens.
//!
//! Two lanes. Faults come one after another, so that a majority is always there and every wrong
//! answer has one cause; what operators do (changes) comes whenever it comes, during faults too.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// What befalls one node, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The claimant's process is killed, and started again.
    KillClaimant,
    /// A process is stopped from running.
    Pause,
    /// A node is cut off from all others.
    CutOff,
    /// A node hears the others and is not heard.
    Mute,
    /// A node is heard and hears nobody.
    Deafen,
}

impl Fault {
    /// Does the process not run meanwhile?
    pub fn stops(self) -> bool {
        matches!(self, Self::KillClaimant | Self::Pause)
    }
}

/// One thing that is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A new node joins.
    Join,
    /// A member leaves.
    Leave,
    /// A member is replaced by a new node.
    Replace,
    /// Something befalls a node for so long.
    Fault(Fault, Duration),
}

/// What is done, each at its time after the beginning, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(pub Vec<(Duration, Act)>);

/// As long as the acceptance run asks for, if there is time.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_CUT: Duration = Duration::from_secs(12);
const LONGEST_DEATH: Duration = Duration::from_secs(5);
/// By this share of the time everything has begun, so that its end is seen under load too.
const BEGUN: f64 = 0.85;

impl Schedule {
    /// Two join, one leaves, one is replaced; the claimant dies, one freezes, one is cut off both
    /// ways, one each way.
    pub fn membership(seed: u64, length: Duration) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut all = faults(&mut random, length.mul_f64(BEGUN));
        let mut changes = [Act::Join, Act::Join, Act::Leave, Act::Replace];
        changes.shuffle(&mut random);
        let slot = length.mul_f64(BEGUN) / 4;
        for (number, act) in (0..).zip(changes) {
            all.push((slot * number + slot.mul_f64(random.random_range(0.05..0.8)), act));
        }
        all.sort_by_key(|(at, _)| *at);
        Self(all)
    }
}

/// One after another, with pauses of drawn lengths before each.
fn faults(random: &mut StdRng, length: Duration) -> Vec<(Duration, Act)> {
    let cut = LONGEST_CUT.min(length / 12);
    let mut faults = [
        (Fault::KillClaimant, LONGEST_DEATH.min(length / 12)),
        (Fault::Pause, LONGEST_PAUSE.min(length / 5)),
        (Fault::CutOff, cut),
        (Fault::Mute, cut),
        (Fault::Deafen, cut),
    ];
    faults.shuffle(random);
    let busy: Duration = faults.iter().map(|(_, lasts)| *lasts).sum();
    let shares: Vec<f64> = faults.iter().map(|_| random.random_range(0.5..1.5)).collect();
    let idle = length.saturating_sub(busy).div_f64(shares.iter().sum());
    let mut now = Duration::ZERO;
    let mut timed = Vec::new();
    for ((fault, lasts), share) in faults.into_iter().zip(shares) {
        now += idle.mul_f64(share);
        timed.push((now, Act::Fault(fault, lasts)));
        now += lasts;
    }
    timed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_happens_once_and_faults_one_after_another_whatever_the_seed() {
        for (seed, seconds) in (0..200).zip([30, 60, 180].into_iter().cycle()) {
            let length = Duration::from_secs(seconds);
            let Schedule(all) = Schedule::membership(seed, length);
            assert!(all.is_sorted_by_key(|(at, _)| *at));
            let count = |wanted: fn(&Act) -> bool| all.iter().filter(|(_, act)| wanted(act)).count();
            assert_eq!(count(|act| *act == Act::Join), 2);
            assert_eq!(count(|act| *act == Act::Leave) + count(|act| *act == Act::Replace), 2);
            let mut free = Duration::ZERO;
            let mut faults = 0;
            for (at, act) in &all {
                assert!(*at < length.mul_f64(BEGUN), "{at:?}");
                if let Act::Fault(_, lasts) = act {
                    assert!(*at > free && !lasts.is_zero(), "seed {seed}: {all:?}");
                    free = *at + *lasts;
                    faults += 1;
                }
            }
            assert_eq!((faults, free <= length), (5, true));
        }
    }

    #[test]
    fn a_long_run_freezes_a_node_for_half_a_minute_and_a_seed_is_one_schedule() {
        let length = Duration::from_secs(180);
        let schedule = Schedule::membership(3, length);
        assert_eq!(schedule, Schedule::membership(3, length));
        assert_ne!(schedule, Schedule::membership(4, length));
        let paused = |(_, act): &(Duration, Act)| *act == Act::Fault(Fault::Pause, LONGEST_PAUSE);
        assert!(schedule.0.iter().any(paused), "{schedule:?}");
    }
}
