//! What breaks, and what operators do, drawn up before a run begins: a list that can be printed, shortened
//! and run again.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// A node, by its number in the run.
pub type At = usize;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The process ends, memory and all, and is started again after a while. With `power`, so does the
    /// machine: what was not synced may be gone.
    Kill {
        /// Which node.
        at: At,
        /// Until it is started again.
        lasts: Duration,
        /// Is it the machine that ends?
        power: bool,
    },
    /// The process stands still.
    Pause {
        /// Which node.
        at: At,
        /// For so long.
        lasts: Duration,
    },
    /// Nothing passes from the first to the second of each pair.
    Cut {
        /// Directions.
        ways: Vec<(At, At)>,
        /// For so long.
        lasts: Duration,
    },
    /// The time of day jumps.
    Jump {
        /// Which node's.
        at: At,
        /// By so many milliseconds, either way.
        ms: i64,
    },
    /// Everything on the network takes so many times as long.
    Slow {
        /// So many times.
        times: u32,
        /// For so long.
        lasts: Duration,
    },
    /// A node that is a cluster of its own joins.
    Join,
    /// A member leaves.
    Leave {
        /// Picks among those that can.
        pick: u32,
    },
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An act and its time since the beginning of the unrest.
pub type Planned = (Duration, Act);

/// What a seed has happen within a time to a cluster that begins with so many nodes and may have `most`.
pub fn draw(random: &mut SmallRng, nodes: usize, most: usize, time: Duration) -> Vec<Planned> {
    let mut acts = Vec::new();
    let mut now = Duration::ZERO;
    loop {
        now += ms(random, 200, 3_000);
        if now >= time {
            break;
        }
        acts.push((now, fault(random, nodes)));
    }
    let (mut now, mut members) = (Duration::ZERO, nodes);
    loop {
        now += ms(random, 1_500, 8_000);
        if now >= time {
            break;
        }
        let joins = members < most && (members <= 2 || random.random_bool(0.6));
        if joins {
            members += 1;
            acts.push((now, Act::Join));
        } else if members > 2 {
            members -= 1;
            acts.push((now, Act::Leave { pick: random.next_u32() }));
        }
    }
    acts.sort_by_key(|(at, _)| *at);
    acts
}

fn fault(random: &mut SmallRng, nodes: usize) -> Act {
    let all: Vec<At> = (0..nodes).collect();
    let at = random.random_range(0..nodes);
    let longest = if random.random_bool(0.2) { 8_000 } else { 2_500 };
    let lasts = ms(random, 20, longest);
    match random.random_range(0..100) {
        0..25 => Act::Kill { at, lasts, power: random.random_bool(0.5) },
        25..45 => Act::Pause { at, lasts },
        45..62 => {
            let other = *all.choose(random).unwrap_or(&0);
            let mut ways = vec![(at, other)];
            ways.extend(random.random_bool(0.5).then_some((other, at)));
            ways.retain(|(from, to)| from != to);
            Act::Cut { ways, lasts }
        }
        62..78 => {
            // A node alone; perhaps it only hears nothing, or only is not heard.
            let (deaf, dumb) =
                *[(true, false), (false, true), (true, true)].choose(random).unwrap_or(&(true, true));
            let others = all.iter().filter(|other| **other != at);
            let ways = others
                .flat_map(|other| [deaf.then_some((*other, at)), dumb.then_some((at, *other))])
                .flatten()
                .collect();
            Act::Cut { ways, lasts }
        }
        78..84 => {
            let (here, there): (Vec<At>, Vec<At>) = all.iter().partition(|_| random.random_bool(0.5));
            let ways = here.iter().flat_map(|a| there.iter().flat_map(|b| [(*a, *b), (*b, *a)])).collect();
            Act::Cut { ways, lasts }
        }
        84..92 => Act::Jump { at, ms: random.random_range(-4_000..4_000) },
        _ => Act::Slow { times: random.random_range(5..40), lasts },
    }
}

fn ms(random: &mut SmallRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..=to))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_schedule_is_in_order_within_its_time_and_has_everything_in_it() {
        let time = Duration::from_secs(600);
        let acts = draw(&mut SmallRng::seed_from_u64(1), 4, 6, time);
        assert!(acts.is_sorted_by_key(|(at, _)| *at) && acts.iter().all(|(at, _)| *at < time));
        let has = |is: fn(&Act) -> bool| acts.iter().filter(|(_, act)| is(act)).count() > 2;
        assert!(has(|act| matches!(act, Act::Kill { power: true, .. })));
        assert!(has(|act| matches!(act, Act::Kill { power: false, .. })));
        assert!(has(|act| matches!(act, Act::Pause { .. })) && has(|act| matches!(act, Act::Jump { .. })));
        assert!(has(|act| matches!(act, Act::Cut { ways, .. } if ways.len() > 2)));
        assert!(has(|act| matches!(act, Act::Slow { .. })));
        assert!(has(|act| *act == Act::Join) && has(|act| matches!(act, Act::Leave { .. })));
        assert_eq!(acts, draw(&mut SmallRng::seed_from_u64(1), 4, 6, time));
    }
}
