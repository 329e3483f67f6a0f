//! The schedule of a run: faults and operators' requests with their times. It is drawn before the run starts,
//! so that it can be printed, shortened and replayed.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// The index of a machine and its node in the run.
pub type At = usize;

/// One fault, or one request of an operator. `lasts` is its duration, and `pick` chooses among the nodes that are
/// eligible at that moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Act {
    /// Kill the process, and start it again after `lasts`. With `power` the machine loses power too: data that was
    /// not synced may be lost.
    Kill { at: At, lasts: Duration, power: bool },
    /// Suspend the process, as SIGSTOP does.
    Pause { at: At, lasts: Duration },
    /// Drop everything that the first node of each pair sends to the second.
    Cut { ways: Vec<(At, At)>, lasts: Duration },
    /// Let the node's time of day jump by `ms` milliseconds.
    Jump { at: At, ms: i64 },
    /// Multiply the latency of the network.
    Slow { times: u32, lasts: Duration },
    /// Fill the disk; with `syncs`, let its syncs fail instead.
    Disk { at: At, lasts: Duration, syncs: bool },
    /// Kill the process and start it on a copy of its disk that is `age` old.
    Stale { at: At, age: Duration, lasts: Duration },
    /// Lose the machine and put an empty one of the same name in its place. The old node is removed, and the new one
    /// joins.
    Wipe { at: At, lasts: Duration },
    /// Have a new node join. For some picks a module is deployed on it before it joins, or while it joins.
    Join { pick: u32 },
    /// Have a member leave.
    Leave { pick: u32 },
    /// Replace a member with a new node.
    Replace { pick: u32 },
    /// Lose a member's machine for good, and remove the member.
    Remove { pick: u32 },
    /// Mark a member as down for a while.
    Down { pick: u32, lasts: Duration },
    /// Stage a join and a leave, show the plan and commit it.
    Commit { pick: u32 },
    /// Lose a majority of the voters for good, and recover the cluster by a survivor.
    Recover { pick: u32 },
    /// Deploy the next release of a module.
    Deploy { module: usize },
    /// Return a module to its previous release.
    Rollback { module: usize },
    /// Undeploy a module, and deploy it again after `lasts`.
    Undeploy { module: usize, lasts: Duration },
    /// Limit the number of transfers that a node sends at once, and their rate in bytes per second.
    Limit { outgoing: u16, rate: Option<u64> },
    /// Pause all transfers for a while.
    Hold { lasts: Duration },
    /// Stop a node and start it again with the newest build.
    Upgrade { at: At, lasts: Duration },
    /// Split the network into parts for a while. The nodes of all parts keep running, and each part without a
    /// quorum is recovered.
    RecoverApart { pick: u32, lasts: Duration },
}

impl Act {
    /// Return true if the act delays no request.
    pub fn is_fair(&self) -> bool {
        matches!(self, Self::Join { .. } | Self::Leave { .. })
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An act and its time, from the moment at which the clients start.
pub type Planned = (Duration, Act);

/// The dimensions of a run, as the schedule needs them.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of nodes at the start.
    pub nodes: usize,
    /// Number of members up to which the schedule adds nodes.
    pub most: usize,
    /// Number of modules.
    pub modules: usize,
    /// Number of nodes that run an older build at the start: the last ones.
    pub older: usize,
}

/// Draw the acts that happen within `time`, in order.
///
/// Each seed leaves out some kinds of acts, so that it has more of the others.
pub fn draw(random: &mut SmallRng, shape: Shape, time: Duration) -> Vec<Planned> {
    let mut acts = Vec::new();
    let faults: Vec<fn(&mut SmallRng, Shape) -> Act> = vec![kill, pause, cut, alone, split, jump, slow];
    let faults = some(random, &faults, 0.75);
    let pace = random.random_range(1_000..5_000);
    every(random, time, 200, pace, |random, now| {
        acts.extend(faults.choose(random).map(|fault| (now, fault(random, shape))));
    });
    let mut members = shape.nodes;
    let mut changes =
        some(random, &[Change::Leave, Change::Replace, Change::Remove, Change::Down, Change::Commit], 0.5);
    // The older build does not know removals: no node is removed while one runs it.
    let removes = shape.older == 0;
    changes.retain(|change| removes || !matches!(change, Change::Remove));
    every(random, time, 1_500, 8_000, |random, now| {
        if members < shape.most && (members <= 2 || random.random_bool(0.5)) {
            members += 1;
            acts.push((now, Act::Join { pick: random.next_u32() }));
            if random.random_bool(0.3) {
                // The deploy happens while the node's first partitions arrive.
                let module = random.random_range(0..shape.modules);
                acts.push((now + ms(random, 50, 600), Act::Deploy { module }));
            }
            return;
        }
        let Some(change) = changes.choose(random) else { return };
        let pick = random.next_u32();
        let act = match change {
            Change::Leave => Act::Leave { pick },
            Change::Replace => Act::Replace { pick },
            Change::Remove => Act::Remove { pick },
            Change::Down => Act::Down { pick, lasts: ms(random, 500, 6_000) },
            Change::Commit => Act::Commit { pick },
        };
        if matches!(change, Change::Leave | Change::Remove) {
            if members <= 2 {
                return;
            }
            members -= 1;
        }
        acts.push((now, act));
    });
    if random.random_bool(0.7) {
        every(random, time, 500, 8_000, |random, now| {
            let module = random.random_range(0..shape.modules);
            let act = match random.random_range(0..100) {
                0..60 => Act::Deploy { module },
                60..85 => Act::Rollback { module },
                // The first module is never undeployed, so that its keys live long.
                _ if module == 0 => Act::Deploy { module },
                _ => Act::Undeploy { module, lasts: ms(random, 10, 3_000) },
            };
            acts.push((now, act));
        });
    }
    if random.random_bool(0.3) {
        every(random, time, 1_000, 10_000, |random, now| {
            let act = if random.random() {
                let rate = random.random_bool(0.5).then(|| random.random_range(1_024..200_000));
                Act::Limit { outgoing: random.random_range(1..=4), rate }
            } else {
                Act::Hold { lasts: ms(random, 100, 8_000) }
            };
            acts.push((now, act));
        });
    }
    let disks = some(random, if removes { &[0, 1, 2] } else { &[0] }, 0.15);
    if !disks.is_empty() {
        every(random, time, 2_000, 10_000, |random, now| {
            let (at, lasts) = (random.random_range(0..shape.nodes), ms(random, 100, 3_000));
            acts.push((
                now,
                match disks.choose(random) {
                    Some(0) => Act::Disk { at, lasts, syncs: random.random() },
                    Some(1) => Act::Stale { at, age: ms(random, 0, 5_000), lasts },
                    _ => Act::Wipe { at, lasts },
                },
            ));
        });
    }
    for at in shape.nodes - shape.older..shape.nodes {
        if random.random_bool(0.8) {
            acts.push((
                ms(random, 0, time.as_millis() as u64),
                Act::Upgrade { at, lasts: ms(random, 20, 2_000) },
            ));
        }
    }
    if removes && random.random_bool(0.07) {
        acts.push((time * 2 / 3, Act::Recover { pick: random.next_u32() }));
    }
    if removes && random.random_bool(0.08) {
        // The time must suffice for the voters to notice that there is no leader.
        let act = Act::RecoverApart { pick: random.next_u32(), lasts: ms(random, 5_000, 15_000) };
        acts.push((time / 4, act));
    }
    acts.retain(|(at, _)| *at <= time);
    acts.sort_by_key(|(at, _)| *at);
    acts
}

#[derive(Clone, Copy)]
enum Change {
    Leave,
    Replace,
    Remove,
    Down,
    Commit,
}

/// Choose each element with this probability, and shuffle the chosen ones.
fn some<T: Clone>(random: &mut SmallRng, all: &[T], chance: f64) -> Vec<T> {
    let mut some: Vec<T> = all.iter().filter(|_| random.random_bool(chance)).cloned().collect();
    some.shuffle(random);
    some
}

fn every(
    random: &mut SmallRng,
    time: Duration,
    from: u64,
    to: u64,
    mut act: impl FnMut(&mut SmallRng, Duration),
) {
    let mut now = Duration::ZERO;
    loop {
        now += ms(random, from, to);
        if now >= time {
            return;
        }
        act(random, now);
    }
}

fn ms(random: &mut SmallRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..=to))
}

fn any(random: &mut SmallRng, shape: Shape) -> (At, Duration) {
    let longest = if random.random_bool(0.2) { 8_000 } else { 2_500 };
    (random.random_range(0..shape.nodes), ms(random, 20, longest))
}

fn kill(random: &mut SmallRng, shape: Shape) -> Act {
    let (at, lasts) = any(random, shape);
    Act::Kill { at, lasts, power: random.random() }
}

fn pause(random: &mut SmallRng, shape: Shape) -> Act {
    let (at, lasts) = any(random, shape);
    Act::Pause { at, lasts }
}

fn cut(random: &mut SmallRng, shape: Shape) -> Act {
    let ((at, lasts), other) = (any(random, shape), random.random_range(0..shape.nodes));
    let mut ways = vec![(at, other)];
    ways.extend(random.random_bool(0.5).then_some((other, at)));
    ways.retain(|(from, to)| from != to);
    Act::Cut { ways, lasts }
}

/// Cut one node off from all others, in either direction or in both.
fn alone(random: &mut SmallRng, shape: Shape) -> Act {
    let (at, lasts) = any(random, shape);
    let (deaf, dumb) = *[(true, false), (false, true), (true, true)].choose(random).unwrap_or(&(true, true));
    let others = (0..shape.nodes).filter(|other| *other != at);
    let ways = others.flat_map(|other| [deaf.then_some((other, at)), dumb.then_some((at, other))]);
    Act::Cut { ways: ways.flatten().collect(), lasts }
}

fn split(random: &mut SmallRng, shape: Shape) -> Act {
    let (_, lasts) = any(random, shape);
    let (here, there): (Vec<At>, Vec<At>) = (0..shape.nodes).partition(|_| random.random_bool(0.5));
    let ways = here.iter().flat_map(|a| there.iter().flat_map(|b| [(*a, *b), (*b, *a)])).collect();
    Act::Cut { ways, lasts }
}

fn jump(random: &mut SmallRng, shape: Shape) -> Act {
    Act::Jump { at: random.random_range(0..shape.nodes), ms: random.random_range(-4_000..4_000) }
}

fn slow(random: &mut SmallRng, shape: Shape) -> Act {
    let (_, lasts) = any(random, shape);
    Act::Slow { times: random.random_range(5..40), lasts }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_schedule_is_ordered_and_within_its_time_and_many_seeds_have_every_kind_of_act() {
        let time = Duration::from_secs(60);
        let mut kinds = BTreeSet::new();
        for seed in 0..100 {
            let shape = Shape { nodes: 4, most: 6, modules: 3, older: (seed % 2) as usize };
            let acts = draw(&mut SmallRng::seed_from_u64(seed), shape, time);
            assert!(acts.is_sorted_by_key(|(at, _)| *at) && acts.iter().all(|(at, _)| *at <= time));
            assert_eq!(acts, draw(&mut SmallRng::seed_from_u64(seed), shape, time));
            let kind = |act: &Act| act.to_string().split([' ', '{']).next().unwrap_or_default().to_owned();
            kinds.extend(acts.iter().map(|(_, act)| kind(act)));
        }
        assert_eq!(kinds.len(), 22, "{kinds:?}");
    }
}
