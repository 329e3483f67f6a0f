//! The schedule of a chaos run, drawn from a seed before the run starts.
//!
//! It has two lanes. Faults come one after another, so that a majority always exists and every wrong answer
//! has a single cause. Membership changes come at any time, including during faults.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// A fault of one node that lasts for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The claimant's process is killed and later restarted.
    KillClaimant,
    /// A process is frozen (SIGSTOP).
    Pause,
    /// A node is cut off from all others, in both directions.
    CutOff,
    /// A node receives from the others, but what it sends is dropped.
    Mute,
    /// A node sends to the others, but receives nothing.
    Deafen,
}

impl Fault {
    /// Return true if the process does not run during the fault.
    pub fn stops(self) -> bool {
        matches!(self, Self::KillClaimant | Self::Pause)
    }
}

/// One change or fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A new node joins.
    Join,
    /// A member leaves.
    Leave,
    /// A member is replaced by a new node.
    Replace,
    /// A fault, and its duration.
    Fault(Fault, Duration),
}

/// Changes and faults in order, each with its time after the start of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(pub Vec<(Duration, Act)>);

/// Longest durations of the faults; the pause has the length required by the acceptance run. Short runs use
/// less.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_CUT: Duration = Duration::from_secs(12);
const LONGEST_DEATH: Duration = Duration::from_secs(5);
/// Share of the run within which every change and fault starts, so that its end is under load too.
const BEGUN: f64 = 0.85;

impl Schedule {
    /// Draw a schedule: two joins, a leave and a replacement; the claimant is killed, one node freezes, one is
    /// cut off in both directions and two in one direction each.
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

/// Draw the faults, one after another, with a drawn pause before each.
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
    fn every_seed_has_each_event_once_and_no_two_faults_at_once() {
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
    fn a_long_run_freezes_a_node_for_30_s_and_a_seed_gives_one_schedule() {
        let length = Duration::from_secs(180);
        let schedule = Schedule::membership(3, length);
        assert_eq!(schedule, Schedule::membership(3, length));
        assert_ne!(schedule, Schedule::membership(4, length));
        let paused = |(_, act): &(Duration, Act)| *act == Act::Fault(Fault::Pause, LONGEST_PAUSE);
        assert!(schedule.0.iter().any(paused), "{schedule:?}");
    }
}
