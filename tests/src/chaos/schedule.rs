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
    /// A process is killed and later restarted.
    Kill,
    /// A process is killed and its database of items is deleted, before it is restarted.
    DeleteItems,
    /// A process ends in order (SIGTERM) and is later restarted.
    Stop,
    /// A process is frozen (SIGSTOP).
    Pause,
    /// A node is cut off from all others, in both directions.
    CutOff,
    /// A node receives from the others, but what it sends is dropped.
    Mute,
    /// A node sends to the others, but receives nothing.
    Deafen,
    /// Two nodes are cut off from each other, and reach all others.
    Part,
    /// Nothing that one node sends reaches one other node.
    PartOneWay,
}

impl Fault {
    /// Return true if the process does not run during the fault.
    pub fn stops(self) -> bool {
        self.ends() || self == Self::Pause
    }

    /// Return true if the process ends, and another one starts after the fault.
    pub fn ends(self) -> bool {
        matches!(self, Self::KillClaimant | Self::Kill | Self::DeleteItems | Self::Stop)
    }

    /// Return true if the fault is between two nodes.
    pub fn parts(self) -> bool {
        matches!(self, Self::Part | Self::PartOneWay)
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
/// Length of a round of [`Schedule::durability`], and the time that a fault needs at least, with the recovery from it.
const ROUND: Duration = Duration::from_secs(150);
const SHORTEST: Duration = Duration::from_secs(4);
/// Share of the run within which every change and fault starts, so that its end is under load too.
const BEGUN: f64 = 0.85;

impl Schedule {
    /// Draw a schedule: two joins, a leave and a replacement; the claimant is killed, one node freezes, one is
    /// cut off in both directions and two in one direction each.
    pub fn membership(seed: u64, length: Duration) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let begun = length.mul_f64(BEGUN);
        let faults = [Fault::KillClaimant, Fault::Pause, Fault::CutOff, Fault::Mute, Fault::Deafen];
        let changes = [Act::Join, Act::Join, Act::Leave, Act::Replace];
        Self::of(&mut random, begun, vec![(&faults, &changes)])
    }

    /// Draw a schedule in rounds of about `ROUND`. In each of them a node joins, one leaves and one is replaced; one node
    /// is killed, one loses its items, one is stopped, and one freezes; one is cut off in both directions and two in one
    /// direction each; and two are cut off from each other, in both directions and in one. A run that is too short for all
    /// of that has a part of it.
    pub fn durability(seed: u64, length: Duration) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let begun = length.mul_f64(BEGUN);
        let rounds = (begun.as_secs_f64() / ROUND.as_secs_f64()).round().max(1.0) as usize;
        // Two nodes that do not see each other both coordinate writes of one key, so no run is without that.
        let mut faults = [Fault::Kill, Fault::DeleteItems, Fault::Pause, Fault::Part].to_vec();
        let mut others = [Fault::Stop, Fault::CutOff, Fault::PartOneWay, Fault::Mute, Fault::Deafen];
        others.shuffle(&mut random);
        let fitting = (begun.as_secs_f64() / SHORTEST.as_secs_f64()) as usize;
        faults.extend(others.into_iter().take(fitting.saturating_sub(faults.len())));
        let changes = [Act::Join, Act::Leave, Act::Replace];
        let changes = if fitting > faults.len() { &changes[..] } else { &changes[..2] };
        Self::of(&mut random, begun, vec![(&faults, changes); rounds])
    }

    /// Draw the order and the times of the faults and changes of each round.
    fn of(random: &mut StdRng, length: Duration, rounds: Vec<(&[Fault], &[Act])>) -> Self {
        let mut all = Vec::new();
        let length = length / u32::try_from(rounds.len()).unwrap_or(u32::MAX).max(1);
        for (round, (with, changes)) in (0..).zip(rounds) {
            let mut timed = faults(random, length, with);
            let mut changes = changes.to_vec();
            changes.shuffle(random);
            let slot = length / u32::try_from(changes.len()).unwrap_or(u32::MAX).max(1);
            for (number, act) in (0..).zip(changes) {
                timed.push((slot * number + slot.mul_f64(random.random_range(0.05..0.8)), act));
            }
            all.extend(timed.into_iter().map(|(at, act)| (length * round + at, act)));
        }
        all.sort_by_key(|(at, _)| *at);
        Self(all)
    }
}

/// Draw the order of faults and a pause before each.
fn faults(random: &mut StdRng, length: Duration, faults: &[Fault]) -> Vec<(Duration, Act)> {
    let share = |part: u32| length / (part * u32::try_from(faults.len()).unwrap_or(u32::MAX)) * 5;
    let lasts = |fault: &Fault| match fault {
        fault if fault.ends() => LONGEST_DEATH.min(share(12)),
        Fault::Pause => LONGEST_PAUSE.min(length / 5),
        _ => LONGEST_CUT.min(share(12)),
    };
    let mut faults: Vec<(Fault, Duration)> = faults.iter().map(|fault| (*fault, lasts(fault))).collect();
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
    fn every_round_kills_deletes_freezes_and_parts_and_changes_members() {
        for (seed, seconds) in (0..200).zip([20, 60, 180, 1800].into_iter().cycle()) {
            let length = Duration::from_secs(seconds);
            let Schedule(all) = Schedule::durability(seed, length);
            assert!(all.is_sorted_by_key(|(at, _)| *at));
            let count = |wanted: &dyn Fn(Fault) -> bool| {
                all.iter().filter(|(_, act)| matches!(act, Act::Fault(fault, _) if wanted(*fault))).count()
            };
            let rounds = count(&|fault| fault == Fault::Kill);
            assert_eq!(
                rounds,
                match seconds {
                    1800 => 10,
                    _ => 1,
                }
            );
            for fault in [Fault::DeleteItems, Fault::Pause, Fault::Part] {
                assert_eq!(count(&|other| other == fault), rounds, "seed {seed}: {all:?}");
            }
            assert_eq!(count(&|_| true), rounds * if seconds == 20 { 4 } else { 9 });
            let changes = |wanted: Act| all.iter().filter(|(_, act)| *act == wanted).count();
            let replaces = if seconds == 20 { 0 } else { 1 };
            let counts = [changes(Act::Join), changes(Act::Leave), changes(Act::Replace)];
            assert_eq!(counts, [rounds, rounds, replaces * rounds]);
            let mut free = Duration::ZERO;
            for (at, act) in &all {
                if let Act::Fault(_, lasts) = act {
                    assert!(*at > free && !lasts.is_zero(), "seed {seed}: {all:?}");
                    free = *at + *lasts;
                }
            }
            assert!(free <= length);
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
