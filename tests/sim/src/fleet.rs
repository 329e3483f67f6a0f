//! The modules of a run and the behaviour of their releases.
//!
//! Modules follow a script. In some seeds one or more of them are real components instead: `guests/kv`, whose items are
//! in host storage, or `guests/memkv`, whose items are in guest memory. Both have the same commands as the script.

use annulus_harness::guest::{EndlessFold, Keeps, OneIn, Oversize, Script, Slow, Traps};
use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::guests::component_with;

/// The plan of one module: what each of its releases does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The name under which the module is deployed; also in its scripts.
    pub name: String,
    /// Whether the guest or the host keeps the items.
    pub keeps: Keeps,
    /// True for a real component, which runs as WebAssembly. Otherwise the guests follow a script.
    pub real: bool,
    /// The faults of the module's guests; `None` for guests that behave.
    wild: Option<Script>,
    /// Item formats of the releases: release `r` has entry `r` modulo the length.
    formats: Vec<Formats>,
}

/// The item formats that a release reads, and those that it can write.
type Formats = (Vec<u32>, Vec<u32>);

/// Draw one to three modules, but at most `most`. The guests of the first module behave.
pub fn draw(random: &mut SmallRng, most: Option<usize>) -> Vec<Plan> {
    let drawn = random.random_range(1..=3);
    let many = most.map_or(drawn, |most| drawn.min(most.max(1)));
    (0..3).map(|at| plan(random, at)).take(many).collect()
}

/// Make real components of some modules, and of at least one.
pub fn make_real(fleet: &mut [Plan], random: &mut SmallRng) {
    let one = random.random_range(0..fleet.len());
    for (at, plan) in fleet.iter_mut().enumerate() {
        // Draw for each module, so that the number of draws does not depend on `one`.
        plan.real = random.random_bool(0.4) | (at == one);
    }
}

fn plan(random: &mut SmallRng, at: usize) -> Plan {
    let keeps = if random.random() { Keeps::Guest } else { Keeps::Host };
    let wild = wild(random);
    let formats = (0..7).map(|_| formats(random)).collect();
    Plan { name: format!("kv{at}"), keeps, real: false, wild: (at > 0).then_some(wild), formats }
}

fn formats(random: &mut SmallRng) -> Formats {
    match random.random_range(0..100) {
        0..35 => (vec![1], vec![1]),
        35..50 => (vec![1, 2], vec![1]),
        50..75 => (vec![1, 2], vec![1, 2]),
        _ => (vec![1, 2], vec![2]),
    }
}

/// Draw the faults of a module's guests and their frequencies.
fn wild(random: &mut SmallRng) -> Script {
    let mut one_in = |share: f64, from: u32, to: u32| {
        let (falls, times) = (random.random_bool(share), random.random_range(from..=to));
        OneIn(if falls { times } else { 0 })
    };
    let traps = Traps {
        command: one_in(0.5, 30, 300),
        init: one_in(0.3, 10, 60),
        fold: one_in(0.4, 5, 60),
        take: one_in(0.4, 5, 60),
        callback: one_in(0.4, 5, 40),
    };
    let (slow, loops) = (one_in(0.5, 20, 200), one_in(0.2, 300, 2_000));
    let (refuses, dooms, rejects) = (one_in(0.4, 10, 80), one_in(0.3, 30, 300), one_in(0.3, 30, 300));
    let (values, init_refuses) = (one_in(0.5, 4, 60), one_in(0.2, 20, 100));
    let (puts_handoff_off, refuses_in_handoff) = (one_in(0.3, 2, 10), one_in(0.3, 2, 10));
    let endless_fold = random.random_bool(0.05).then(|| {
        let ways = [EndlessFold::SamePage, EndlessFold::EmptyPages, EndlessFold::Repeats];
        *ways.choose(random).unwrap_or(&EndlessFold::SamePage)
    });
    let largest = if random.random_bool(0.3) { 9 << 20 } else { 1_500 << 10 };
    Script {
        traps,
        slow: Slow { calls: slow, ms: 1..=random.random_range(10..2_000) },
        loops,
        refuses,
        dooms,
        rejects,
        oversize: Oversize { values, bytes: 1 << 10..=largest },
        init_refuses,
        puts_handoff_off,
        refuses_in_handoff,
        endless_fold,
        ..Script::default()
    }
}

impl Plan {
    /// Replace the faults of the module's guests.
    pub fn are_like(&mut self, guests: &Script) {
        self.wild = Some(guests.clone());
    }

    /// Let every release read every format that any release writes.
    pub fn read_all(&mut self) {
        self.formats.iter_mut().for_each(|(reads, _)| *reads = vec![1, 2]);
    }

    /// Return the component of a release. A real module alternates between its two versions.
    pub fn component(&self, release: u32) -> Bytes {
        if self.real {
            let features: &[&str] = if release.is_multiple_of(2) { &["v2"] } else { &[] };
            let guest = match self.keeps {
                Keeps::Host => "guests/kv",
                Keeps::Guest => "guests/memkv",
            };
            return component_with(guest, features).into();
        }
        self.script(release).component()
    }

    /// Return the script of a release. Its formats depend on its number.
    fn script(&self, release: u32) -> Script {
        let (reads, writes) = self.formats[release as usize % self.formats.len()].clone();
        // Every third release has no faults.
        let base = if release % 3 == 2 { None } else { self.wild.clone() };
        Script {
            name: self.name.clone(),
            release,
            keeps: self.keeps,
            reads,
            writes,
            ..base.unwrap_or_default()
        }
    }
}
