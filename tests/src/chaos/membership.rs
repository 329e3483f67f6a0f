//! The membership scenario: two nodes join, one leaves and one is replaced, while the claimant is killed, one
//! node freezes, one is cut off in both directions and two in one direction each.
//!
//! The modules keep their items in memory and have one replica, so the items of a killed node are lost with
//! it. The keys of those partitions are excluded from the check until they are written again, and `status`
//! must name the partitions as possibly lost. All other items must be present at the end.
//!
//! Three modules run: one under the load, one that traps and one with large items ([`super::beside`]). All
//! are redeployed and rolled back during the run ([`super::releases`]).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use super::beside::{self, Beside, Kind};
use super::figures::Outcome;
use super::losses;
use super::releases::Released;
use super::run::{Clients, Run, Terms};
use super::schedule::Schedule;
use crate::guests::component;
use crate::harness::{Cluster, Node};
use crate::load::{self, Load};

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Duration of the load with its changes and faults, without the time to start and to settle.
    pub length: Duration,
    /// Seed for the schedule, the victims and the load.
    pub seed: u64,
    /// Number of members at the start.
    pub nodes: usize,
    /// Average time between two releases.
    pub release_every: Duration,
    /// The load.
    pub load: load::Settings,
    /// Set from outside to end the run early, which counts as a failure.
    pub stop: Arc<AtomicBool>,
}

impl Settings {
    /// Return the settings of a run of this length and seed, with five nodes.
    pub fn new(length: Duration, seed: u64) -> Self {
        let load = load::Settings {
            module: beside::MODULE,
            clients: 12,
            keys: 12_000,
            pad: 200,
            limit: Duration::from_secs(4),
            grace: Duration::from_secs(2),
            // The pause leaves some of the two cores' time to the eight nodes.
            rest: Duration::from_millis(3),
            roam: true,
            seed,
            ..load::Settings::default()
        };
        let release_every = RELEASE_EVERY.min(length / RELEASES_AT_LEAST);
        Self { length, seed, nodes: 5, release_every, load, stop: Arc::default() }
    }
}

/// Time between two releases in a long run, and the smallest number of releases in a short one.
const RELEASE_EVERY: Duration = Duration::from_secs(20);
const RELEASES_AT_LEAST: u32 = 6;

/// The results of the clients of all modules.
pub struct Results {
    /// Result of the load.
    pub report: load::Report,
    /// Results of the clients of the two additional modules.
    pub beside: Vec<beside::Report>,
}

/// Number of wrong answers shown for each additional module.
const SHOWN: usize = 20;

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for module in &self.beside {
            for line in module.examples.iter().take(SHOWN) {
                writeln!(f, "WRONG  module {}: {line}", module.module)?;
            }
            for line in &module.failures {
                writeln!(f, "failed module {}: {line}", module.module)?;
            }
        }
        writeln!(f, "{}", self.report)?;
        writeln!(f, "{}", beside::Report::of(&self.report))?;
        let lines: Vec<String> = self.beside.iter().map(ToString::to_string).collect();
        write!(f, "{}", lines.join("\n"))
    }
}

/// Run the membership scenario.
///
/// # Panics
/// If a node does not start or a deploy before the run fails.
pub fn membership(settings: &Settings) -> Outcome<Results> {
    let Settings { length, seed, nodes, release_every, stop, .. } = settings.clone();
    let terms = Terms { length, seed, nodes, arguments: Vec::new(), release_every, stop };
    let cluster = Run::<All>::cluster(&terms);
    cluster.deploy(beside::LOADED);
    deploy_beside(&cluster);
    let entries: Vec<&Node> = cluster.nodes().iter().collect();
    let load = Load::new(settings.load.clone(), &entries);
    load.fill();
    load.phase("calm");
    load.go();
    let beside = Beside::new(&settings.load, &load.frozen(), &entries);
    let all = All { load, beside, held: BTreeSet::new(), unmentioned: Ok(0) };
    let mut run = Run::begin(terms, cluster, &released(), all);
    run.clients.beside.go(run.began);
    run.carry_out(&Schedule::membership(seed, length));
    finish(run)
}

/// The modules of a run.
fn released() -> Vec<Released> {
    let others = Kind::ALL.map(|kind| (kind.module(), beside::GUEST, true));
    let all = [(beside::MODULE, beside::LOADED, false)].into_iter().chain(others);
    all.map(|(name, guest, settings)| Released { name, component: component(guest), settings }).collect()
}

/// Deploy the two additional modules through the first node.
fn deploy_beside(cluster: &Cluster) {
    let file = cluster.keep("beside.wasm", &component(beside::GUEST));
    for kind in Kind::ALL {
        let words = ["deploy".as_ref(), file.as_os_str(), "--name".as_ref(), kind.module().as_ref()];
        let deployed = cluster[0].json(&words);
        assert_eq!(deployed.code, 0, "{} was not deployed: {deployed:?}", kind.module());
    }
}

/// The clients of all modules.
struct All {
    load: Load,
    beside: Beside,
    /// The partitions that the killed node held.
    held: BTreeSet<u16>,
    /// Number of partitions held by killed nodes, all named by `status`; or the first that were not named.
    unmentioned: Result<usize, String>,
}

impl Clients for All {
    fn enter(&self, nodes: &[&Node]) {
        self.load.enter(nodes);
        self.beside.enter(nodes);
    }

    fn freeze(&self, node: &Node, frozen: bool) {
        self.load.freeze(node, frozen);
    }

    fn phase(&self, what: &str) {
        self.load.phase(what);
    }

    fn progress(&self) -> String {
        let report = self.load.report();
        format!("{} requests, {} failed", report.requests(), report.failed_requests())
    }

    fn before_restart(&mut self, dead: &Node, others: &[&Node]) -> String {
        self.held = losses::held_by_dead(&dead.name, others);
        self.load.doubt(self.held.iter().copied().collect());
        self.beside.doubt(self.held.iter().copied().collect());
        format!("it held {} partitions", self.held.len())
    }

    fn after_restart(&mut self, node: &Node) {
        let mentioned = losses::check_mentioned(node, &self.held);
        self.unmentioned = self.unmentioned.clone().and_then(|so_far| Ok(so_far + mentioned?));
    }
}

fn finish(mut run: Run<All>) -> Outcome<Results> {
    let mut oracles = run.settle();
    let results = if run.is_interrupted() {
        Results { report: run.clients.load.report(), beside: run.clients.beside.reports() }
    } else {
        run.clients.load.phase("settled");
        thread::sleep(Duration::from_secs(1));
        run.say("all keys are read back");
        Results { report: run.clients.load.verify(), beside: run.clients.beside.verify() }
    };
    if !run.is_interrupted() {
        let report = &results.report;
        let sound = if report.is_sound() {
            Ok(format!("{} answers of `keys` complete and right", report.complete))
        } else {
            Err("see below".to_owned())
        };
        oracles.extend([
            ("no acknowledged write lost, none revived, every request answered", sound),
            (
                "no module is affected by another, and no request fails with `internal`",
                apart(report, &results.beside),
            ),
            run.look_back(),
            (
                "the partitions of a killed node are shown as possible-loss",
                run.clients.unmentioned.clone().map(|held| format!("{held} partitions of each module")),
            ),
        ]);
    }
    let outcome = Outcome { began: run.began, events: run.events.clone(), oracles, results };
    if !outcome.holds() && !run.is_interrupted() {
        run.cluster.keep_directory();
    }
    outcome
}

/// Check that no module was affected by the faults of the others.
fn apart(report: &load::Report, beside: &[beside::Report]) -> Result<String, String> {
    let mut amiss: Vec<String> = Vec::new();
    for module in std::iter::once(&beside::Report::of(report)).chain(beside) {
        amiss.extend(module.sound().err());
    }
    let traps: u64 = beside.iter().map(|module| module.told).sum();
    if traps == 0 {
        amiss.push("no trap lost any items".to_owned());
    }
    if amiss.is_empty() { Ok(format!("{traps} traps lost items")) } else { Err(amiss.join("; ")) }
}
