//! A whole cluster of the core's machines in one thread, driven by a seed.
//!
//! [`run`] makes a world of some nodes that hold a ring of partitions with keys, has clients
//! read, write and delete them through any node, operators let nodes join and leave, and
//! breaks things: kills, pauses, cuts (one way too), clock jumps, slow links. After a while all
//! faults end; then everything must complete and every key be readable. Every choice comes from
//! the seed, so a seed is a history that replays exactly: the trace's hash says so.
//!
//! What is real: `ClusterState::apply` over the log on every node, the claim, the handoff's
//! sender and receiver, what a committed change means to a node (`holding`, `handoff::duties`), the
//! holder's gate and the coordinator's retries (`routing`). What is modelled: how the log's
//! entries get their majority and who leads (`council`), connections and streams (`net`), a
//! guest (a map of items), disks. Drivers do as the host's do, task for task.

mod claimant;
mod council;
mod event;
mod live;
mod nemesis;
mod net;
mod node;
mod operator;
mod oracle;
mod random;
mod requests;
pub mod scale;
mod time;
mod trace;
mod transfers;
pub mod whole;
mod world;

pub use oracle::{Counts, Rule};

use std::fmt;
use std::str::FromStr;

use time::{MS, SECOND, Time};
use world::World;

/// A rule broken on purpose, to see that a simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A seal is not on the disk: a restart serves again (R1).
    ForgetSeal,
    /// A sealed holder goes on serving (R1).
    ServeWhileSealed,
    /// A proposal without an outcome is taken for one that did not happen (R1).
    AssumeNotFlipped,
    /// What was staged outlives its cancel (R7).
    KeepStage,
    /// A write during a handoff is not forwarded (R15).
    LoseForward,
    /// A page is read before its turn, and overtakes a write (R15).
    LatePage,
    /// Who fills a stage that is dropped goes on with the next one (R7).
    FillTheNextStage,
    /// A node serves requests that were routed by an older version, held or not (R2).
    ServeStaleVersions,
    /// A write is acknowledged before it is done (R11).
    AckEarly,
    /// A coordinator sends again what may have been applied (R10).
    RetryUnknown,
    /// A vnode starts what is past its deadline (R20).
    DeadlineNotChecked,
    /// A coordinator waits without a deadline (D12).
    NoDeadline,
    /// The log flips a transfer that was cancelled (R1).
    FlipTheCancelled,
    /// The log takes a table that was computed from another ring (R4).
    RebalanceWithoutBase,
    /// The claim names a node twice in a set (R4).
    RepeatANode,
}

impl Mutant {
    /// Every one.
    pub const ALL: [Self; 15] = [
        Self::ForgetSeal,
        Self::ServeWhileSealed,
        Self::AssumeNotFlipped,
        Self::KeepStage,
        Self::LoseForward,
        Self::LatePage,
        Self::FillTheNextStage,
        Self::ServeStaleVersions,
        Self::AckEarly,
        Self::RetryUnknown,
        Self::DeadlineNotChecked,
        Self::NoDeadline,
        Self::FlipTheCancelled,
        Self::RebalanceWithoutBase,
        Self::RepeatANode,
    ];
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|mutant| mutant.to_string().eq_ignore_ascii_case(name));
        named.ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
            format!("there are: {}", names.join(", "))
        })
    }
}

/// How a world is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The rule that is broken on purpose.
    pub mutant: Option<Mutant>,
    /// How many keys clients use.
    pub keys: usize,
    /// How long things break.
    pub chaos: Time,
    /// How many nodes it begins with; by the seed where none.
    pub nodes: Option<usize>,
    /// How many partitions; by the seed where none.
    pub ring_size: Option<u32>,
    /// Nothing breaks and nobody does anything.
    pub faultless: bool,
    /// Keeps every line of the trace, for a schedule in a file.
    pub whole_trace: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mutant: None,
            keys: 24,
            chaos: 15 * SECOND,
            nodes: None,
            ring_size: None,
            faultless: false,
            whole_trace: false,
        }
    }
}

/// How often what is meant to happen did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Seen {
    pub elections: u64,
    pub lost_proposals: u64,
    pub orphans: u64,
    pub flips: u64,
    pub cancels: u64,
    pub resumes: u64,
    pub fresh_streams: u64,
    pub forwards: u64,
    pub crashes: u64,
    pub sealed_crashes: u64,
    pub pauses: u64,
    pub cuts: u64,
    pub jumps: u64,
    pub joins: u64,
    pub leaves: u64,
    pub orphaned: u64,
    pub downs: u64,
    pub removals: u64,
    pub replaces: u64,
    pub commits: u64,
}

impl Seen {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self { elections, lost_proposals, orphans, flips, cancels, resumes, fresh_streams, .. } = other;
        self.elections += elections;
        self.lost_proposals += lost_proposals;
        self.orphans += orphans;
        self.flips += flips;
        self.cancels += cancels;
        self.resumes += resumes;
        self.fresh_streams += fresh_streams;
        let Self { forwards, crashes, sealed_crashes, pauses, cuts, jumps, joins, leaves, .. } = other;
        let Self { orphaned, downs, removals, replaces, commits, .. } = other;
        self.downs += downs;
        self.forwards += forwards;
        self.crashes += crashes;
        self.sealed_crashes += sealed_crashes;
        self.pauses += pauses;
        self.cuts += cuts;
        self.jumps += jumps;
        self.joins += joins;
        self.leaves += leaves;
        self.orphaned += orphaned;
        self.removals += removals;
        self.replaces += replaces;
        self.commits += commits;
    }
}

/// The rule that a run broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub rule: Rule,
    /// How.
    pub what: String,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What broke, if anything did.
    pub broken: Option<Broken>,
    /// What clients were told.
    pub counts: Counts,
    /// What happened how often.
    pub seen: Seen,
    /// How many events the trace has.
    pub events: u64,
    /// SHA-256 over all of them.
    pub hash: String,
    /// The last of them.
    pub last: Vec<String>,
    /// All of them, if they were kept.
    pub all: Option<Vec<String>>,
}

/// After all faults end, everything must complete within this.
const CALM: Time = 90 * SECOND;

/// One history, from its seed to its rest or to the first broken rule.
pub fn run(seed: u64, settings: &Settings) -> Report {
    let mut world = World::new(seed, settings);
    while world.now < settings.chaos && world.step() {}
    if world.broken.is_none() {
        world.calm_down();
        rest(&mut world);
    }
    Report {
        seed,
        broken: world.broken,
        counts: world.truth.counts,
        seen: world.seen,
        events: world.trace.events(),
        hash: world.trace.hash(),
        last: world.trace.last(),
        all: world.trace.all().map(<[String]>::to_vec),
    }
}

/// Waits until everything has completed, then reads every key through every node.
fn rest(world: &mut World) {
    let end = world.now + CALM;
    // What was cut last is given up, and dialled anew, within this.
    let quiet = world.now + 2 * SECOND;
    while world.now < quiet && world.step() {}
    settle(world, end);
    if world.broken.is_some() {
        return;
    }
    let since = world.now;
    world.read_everything();
    settle(world, end + 15 * SECOND);
    if world.broken.is_none() {
        world.check_last_reads(since);
    }
}

fn settle(world: &mut World, end: Time) {
    loop {
        let next = world.now + 100 * MS;
        while world.now < next && world.step() {}
        world.check_answers();
        if world.broken.is_some() {
            return;
        }
        match world.unrest() {
            None => return,
            Some(why) if world.now > end => world.fail(Rule::Completes, why),
            Some(_) => {}
        }
    }
}
