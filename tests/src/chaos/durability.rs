//! The durability scenario: modules with three replicas lose no acknowledged write, whatever happens to one node at a time.
//!
//! Two modules run, one with its items on disk and one in memory. Nodes join, leave and are replaced; one after another
//! they are killed, stopped, lose their database of items, freeze, and are cut off from all others or from one other. The guest
//! keeps sets of unique ids and counters ([`crate::ledger`]), and is redeployed and rolled back during the run.
//!
//! Two nodes must not lose a store at the same time, so a fault waits until the stores of restarted nodes are complete.
//! At the end every key is read through every node, then with `r` = all; after that the members of each key have the same
//! bytes (`copies.rs`).

mod copies;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::figures::Outcome;
use super::releases::Released;
use super::run::{Clients, Run, SETTLE, Terms};
use super::schedule::Schedule;
use crate::compiled;
use crate::guests::component_with;
use crate::harness::Node;
use crate::ledger::{self, Crowd, Report};

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Duration of the load with its changes and faults, without the time to start and to settle.
    pub length: Duration,
    /// Seed for the victims, the releases and the load.
    pub seed: u64,
    /// Changes and faults.
    pub schedule: Schedule,
    /// Number of members at the start.
    pub nodes: usize,
    /// Average time between two releases.
    pub release_every: Duration,
    /// The load.
    pub crowd: ledger::Settings,
    /// Whether the guest keeps the newer of two versions instead of merging them. The run must then report losses.
    pub newest_wins: bool,
    /// Set from outside to end the run early, which counts as a failure.
    pub stop: Arc<AtomicBool>,
}

impl Settings {
    /// Return the settings of a run of this length and seed, with four nodes.
    pub fn new(length: Duration, seed: u64) -> Self {
        let crowd = ledger::Settings {
            clients: 8,
            slots: 12,
            limit: Duration::from_secs(4),
            // Other tests may take all of the machine for seconds; a request that is never answered is noticed all the same.
            grace: Duration::from_secs(10),
            // The pause leaves some of the two cores' time to the nodes.
            rest: Duration::from_millis(8),
            ring_size: RING,
            seed,
            began: Instant::now(),
        };
        Self {
            length,
            seed,
            schedule: Schedule::durability(seed, length),
            nodes: 4,
            release_every: RELEASE_EVERY.min(length / RELEASES_AT_LEAST),
            crowd,
            newest_wins: false,
            stop: Arc::default(),
        }
    }
}

/// The modules, each with its `--storage`.
const MODULES: [(&str, &str); 2] = [("lasting", "durable"), ("fleeting", "memory")];
const GUEST: &str = "tests/guests/replicated";
/// Number of replicas.
const N: usize = 3;
/// Number of partitions.
const RING: u16 = 32;
/// Time between two releases in a long run, and the smallest number of releases in a short one.
const RELEASE_EVERY: Duration = Duration::from_secs(20);
const RELEASES_AT_LEAST: u32 = 4;
/// Pause between two looks at the state of nodes.
const REST: Duration = Duration::from_millis(100);

/// The results of the clients, by module.
pub struct Results(pub Vec<Report>);

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "{}", lines.join("\n"))
    }
}

/// Run the durability scenario.
///
/// # Panics
/// If a node does not start or a deploy before the run fails.
pub fn durability(settings: &Settings) -> Outcome<Results> {
    let Settings { length, seed, nodes, release_every, stop, .. } = settings.clone();
    let arguments = vec!["--ring-size".to_owned(), settings.crowd.ring_size.to_string()];
    let terms = Terms { length, seed, nodes, arguments, release_every, stop };
    let cluster = Run::<Replicated>::cluster(&terms);
    let features: &[&str] = if settings.newest_wins { &["newest-wins"] } else { &[] };
    let component = component_with(GUEST, features);
    compiled::share(&component);
    let file = cluster.keep("replicated.wasm", &component);
    for (module, storage) in MODULES {
        let deployed = deploy(&cluster[0], &file, module, &["--n", "3", "--storage", storage]);
        deployed.unwrap_or_else(|error| panic!("{error}"));
    }
    let members: Vec<&Node> = cluster.nodes().iter().collect();
    complete(&members).unwrap_or_else(|error| panic!("{error}"));
    let crowd = ledger::Settings { began: Instant::now(), ..settings.crowd.clone() };
    let crowd = Crowd::new(crowd, &MODULES.map(|(module, _)| module), &members);
    crowd.go();
    let released = |(name, _)| Released { name, component: component.clone(), settings: false };
    let mut run = Run::begin(terms, cluster, &MODULES.map(released), Replicated(crowd));
    run.carry_out(&settings.schedule);
    finish(run, &file, settings.newest_wins)
}

/// The clients of both modules.
struct Replicated(Crowd);

impl Clients for Replicated {
    fn enter(&self, nodes: &[&Node]) {
        self.0.enter(nodes);
    }

    fn freeze(&self, node: &Node, frozen: bool) {
        self.0.freeze(node, frozen);
    }

    fn phase(&self, _: &str) {}

    fn progress(&self) -> String {
        let reports = self.0.reports();
        let sum = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
        format!(
            "{} writes acknowledged, {} unknown, {} refused; missed by a read {}, phantom {}",
            sum(|report| report.acknowledged),
            sum(|report| report.unknown),
            sum(|report| report.refused),
            sum(|report| report.missed),
            sum(|report| report.phantom)
        )
    }

    /// What a node has only missed, it need not have: a quorum has it.
    fn recovered(&self, restarted: &[&Node]) -> bool {
        restarted.iter().all(|node| incomplete(node, false).is_none())
    }

    fn before_restart(&mut self, dead: &Node, _: &[&Node]) -> String {
        self.0.end_requests_to(dead);
        String::new()
    }
}

fn finish(mut run: Run<Replicated>, file: &Path, newest_wins: bool) -> Outcome<Results> {
    let mut oracles = run.settle();
    run.clients.0.pause();
    if !run.is_interrupted() {
        let members: Vec<&Node> = run.members.iter().map(|&node| &run.cluster[node]).collect();
        oracles.push(("every store is complete and has caught up", complete(&members)));
        run.say("every key is read through every node, then with r = all");
        let crowd = &run.clients.0;
        members.iter().for_each(|node| crowd.read_back(node));
        let all = read_all(crowd, &members, file);
        run.say("the members are cut off from each other, and their copies are compared");
        let equal = all.and_then(|()| {
            quorums(&members, file, "1")?;
            copies::equal(crowd, &members, run.cluster.relay())
        });
        let reports = crowd.reports();
        let unsound: Vec<String> = reports.iter().filter_map(|report| report.sound().err()).collect();
        let keys: usize = reports.iter().map(|report| report.keys).sum();
        let sound = match unsound.is_empty() {
            true => Ok(format!("{keys} keys through {} nodes", members.len())),
            false => Err(unsound.join("; ")),
        };
        oracles.extend([
            ("no acknowledged write lost, no refused one found, every request answered", sound),
            ("after a read with r = all the members of each key have the same bytes", equal),
            ("no node reports a possible loss", unlost(&members)),
        ]);
        oracles.push(run.look_back());
    }
    let results = Results(run.clients.0.reports());
    let outcome = Outcome { began: run.began, events: run.events.clone(), oracles, results };
    if !outcome.holds() && !run.is_interrupted() && !newest_wins {
        run.cluster.keep_directory();
    }
    outcome
}

/// Read every key with the items of all its replicas.
fn read_all(crowd: &Crowd, members: &[&Node], file: &Path) -> Result<(), String> {
    quorums(members, file, "3")?;
    crowd.read_back(members.first().ok_or("there is no member")?);
    Ok(())
}

/// Set the number of replicas that answer a read, and wait until every node knows it.
fn quorums(members: &[&Node], file: &Path, r: &str) -> Result<(), String> {
    let asked = members.first().ok_or("there is no member")?;
    for (module, _) in MODULES {
        deploy(asked, file, module, &["--r", r])?;
    }
    let wanted: Option<u64> = r.parse().ok();
    let knows = |node: &Node| {
        let rows = node.json(&["modules"]).lines().into_iter().next().unwrap_or_default();
        let rows = rows.as_array().cloned().unwrap_or_default();
        rows.len() == MODULES.len() && rows.iter().all(|row| row["r"].as_u64() == wanted)
    };
    within(|| {
        let other = members.iter().find(|node| !knows(node))?;
        Some(format!("{} does not know of r = {r}", other.name))
    })
}

fn deploy(node: &Node, file: &Path, module: &str, words: &[&str]) -> Result<(), String> {
    let file = file.to_str().ok_or("the path is not text")?;
    let ran = node.json(&[&["deploy", file, "--name", module], words].concat());
    if ran.code == 0 { Ok(()) } else { Err(format!("{module} was not deployed: {ran:?}")) }
}

/// Wait until every store of these members is complete and has caught up. Return a summary.
fn complete(members: &[&Node]) -> Result<String, String> {
    let began = Instant::now();
    within(|| members.iter().find_map(|node| incomplete(node, true)))?;
    Ok(format!("after {:.1} s", began.elapsed().as_secs_f64()))
}

/// Return the reason why a node's stores are not complete, or have not caught up with the others; `None` if they have.
fn incomplete(node: &Node, and_behind: bool) -> Option<String> {
    let sets = sets(node);
    let kept = sets.iter().filter(|set| set.contains(&node.name)).count() * MODULES.len();
    let status = node.json(&["status"]).lines().into_iter().next().unwrap_or_default();
    let replicas = &status["replicas"];
    let whole = replicas["building"] == 0
        && (replicas["behind"] == 0 || !and_behind)
        && replicas["stores"].as_u64().is_some_and(|stores| stores >= kept as u64)
        && !sets.is_empty();
    (!whole).then(|| format!("{} should keep {kept} stores and has {replicas}", node.name))
}

/// Check that no member reports lost items.
fn unlost(members: &[&Node]) -> Result<String, String> {
    let alerts = |node: &&Node| {
        let status = node.json(&["status"]).lines().into_iter().next().unwrap_or_default();
        let alerts = status["alerts"].as_array().cloned().unwrap_or_default();
        let losses = alerts.iter().filter_map(Value::as_str).filter(|alert| alert.contains("possible-loss"));
        losses.map(|alert| format!("{}: {alert}", node.name)).collect::<Vec<_>>()
    };
    let losses: Vec<String> = members.iter().flat_map(alerts).collect();
    if losses.is_empty() { Ok(format!("{} nodes", members.len())) } else { Err(losses.join("; ")) }
}

/// Poll until `amiss` returns `None`: the state belongs to other processes, which send no notification.
///
/// # Errors
/// What is still amiss after [`SETTLE`].
fn within(mut amiss: impl FnMut() -> Option<String>) -> Result<(), String> {
    let deadline = Instant::now() + SETTLE;
    while let Some(why) = amiss() {
        if Instant::now() >= deadline {
            return Err(format!("not within {SETTLE:?}: {why}"));
        }
        thread::sleep(REST);
    }
    Ok(())
}

/// Return the names of the nodes that keep each partition, in the order of the partitions. Empty if the node does not answer.
fn sets(asked: &Node) -> Vec<Vec<String>> {
    let ring = asked.json(&["ring"]).lines().into_iter().next().unwrap_or_default();
    let set = |row: &Value| {
        let members = row["replicas"].as_array().cloned().unwrap_or_default();
        members.iter().take(N).filter_map(|member| member.as_str().map(str::to_owned)).collect()
    };
    ring["partitions"].as_array().map(|rows| rows.iter().map(set).collect()).unwrap_or_default()
}
