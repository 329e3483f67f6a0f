//! What breaks, and what operators do, drawn up before a run begins: a list that can be printed, shortened
//! and run again.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// A node, by its number in the run.
pub type At = usize;

/// One thing that happens. A `pick` chooses among those that can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Act {
    /// The process ends, memory and all, and is started again after a while. With `power`, so does the
    /// machine: what was not synced may be gone.
    Kill { at: At, lasts: Duration, power: bool },
    /// The process stands still.
    Pause { at: At, lasts: Duration },
    /// Nothing passes from the first to the second of each pair.
    Cut { ways: Vec<(At, At)>, lasts: Duration },
    /// The time of day jumps.
    Jump { at: At, ms: i64 },
    /// Everything on the network takes so many times as long.
    Slow { times: u32, lasts: Duration },
    /// The disk has no room for a while; with `syncs` it fails to sync instead.
    Disk { at: At, lasts: Duration, syncs: bool },
    /// The process ends and is started on a copy of its disk that is `age` old.
    Stale { at: At, age: Duration, lasts: Duration },
    /// The machine is lost, and an empty one has its name; the old node is removed, the new one joins.
    Wipe { at: At, lasts: Duration },
    /// A node that is a cluster of its own joins. Some picks deploy a module there before, or meanwhile.
    Join { pick: u32 },
    /// A member leaves.
    Leave { pick: u32 },
    /// A member is replaced by a new node.
    Replace { pick: u32 },
    /// A member is gone for good, and removed.
    Remove { pick: u32 },
    /// A member is marked down for a while.
    Down { pick: u32, lasts: Duration },
    /// A join and a leave are staged, looked at and committed.
    Commit { pick: u32 },
    /// A majority of the voters is gone for good, and the cluster is recovered by a survivor.
    Recover { pick: u32 },
    /// A module gets its next release.
    Deploy { module: usize },
    /// A module goes back to the release before.
    Rollback { module: usize },
    /// A module is undeployed, and after a while deployed again.
    Undeploy { module: usize, lasts: Duration },
    /// Less may move at once, and more slowly.
    Limit { outgoing: u16, rate: Option<u64> },
    /// Nothing moves for a while.
    Hold { lasts: Duration },
    /// A node is started again with the newest build.
    Upgrade { at: At, lasts: Duration },
    /// The network falls into parts for a while, all of which live on, and each that cannot change without the others
    /// is recovered.
    RecoverApart { pick: u32, lasts: Duration },
}

impl Act {
    /// Is it something that holds up nobody?
    pub fn is_fair(&self) -> bool {
        matches!(self, Self::Join { .. } | Self::Leave { .. })
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An act and its time since the beginning of the unrest.
pub type Planned = (Duration, Act);

/// What a run begins with.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// Most nodes that it may have.
    pub most: usize,
    /// Modules.
    pub modules: usize,
    /// Nodes of an older build.
    pub older: usize,
}

/// What a seed has happen within a time. Each kind of thing is left out by some seeds, so that others have more
/// of the rest.
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
    // A cluster with a member of a build that knows nothing of removals removes nobody.
    let removes = shape.older == 0;
    changes.retain(|change| removes || !matches!(change, Change::Remove));
    every(random, time, 1_500, 8_000, |random, now| {
        if members < shape.most && (members <= 2 || random.random_bool(0.5)) {
            members += 1;
            acts.push((now, Act::Join { pick: random.next_u32() }));
            if random.random_bool(0.3) {
                // While the first of its partitions arrive.
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
                // The first one's keys are to live long.
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
        // Voters first have to be sure that nobody leads.
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

/// Some of all, each by this chance, in any order.
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

/// A node alone; perhaps it only hears nothing, or only is not heard.
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
    fn a_schedule_is_in_order_within_its_time_and_all_of_them_have_everything() {
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
