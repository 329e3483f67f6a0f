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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::beside::{self, Beside};
use super::change::{self, Change, Place};
use super::figures::{Event, Oracle, Outcome};
use super::losses;
use super::releases::{self, Releases};
use super::schedule::{Act, Fault, Schedule};
use super::watch::{Expected, Watch};
use crate::harness::{Cluster, LIMIT, Node};
use crate::load::{self, Load};
use crate::relay::Relay;

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

/// Number of nodes started in addition to the members: two to join and one as the replacement.
const SPARE: usize = 3;
/// Longest time for the cluster to settle after the last change and fault.
const SETTLE: Duration = Duration::from_secs(60);
/// Pause between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// Pause before a fault that is not possible at the moment is tried again, and the time after the end of the
/// run at which no more tries are made.
const AGAIN: Duration = Duration::from_millis(500);
const OVERTIME: Duration = Duration::from_secs(30);
/// Time between two releases in a long run, and the smallest number of releases in a short one.
const RELEASE_EVERY: Duration = Duration::from_secs(20);
const RELEASES_AT_LEAST: u32 = 6;

/// Run the membership scenario.
///
/// # Panics
/// If a node does not start or a deploy before the run fails.
pub fn membership(settings: &Settings) -> Outcome {
    let mut run = Run::begin(settings);
    run.carry_out(&Schedule::membership(settings.seed, settings.length));
    run.finish()
}

/// A step of the run, due at some time.
enum Step {
    Do(Act),
    /// End the fault of this event.
    Heal {
        event: usize,
        fault: Fault,
        victim: usize,
    },
}

struct Run<'a> {
    settings: &'a Settings,
    random: StdRng,
    began: Instant,
    // Declared before `cluster`, so that clients stop before the nodes are killed.
    load: Load,
    beside: Beside,
    /// `None` after the last release.
    releases: Option<Releases>,
    watch: Watch,
    cluster: Cluster,
    events: Vec<Event>,
    /// Changes in progress: the event, the node that joins, and the operator's thread.
    changes: Vec<(usize, Option<usize>, Change)>,
    /// Indexes of the nodes that are members, or are joining, and stay.
    members: BTreeSet<usize>,
    /// Indexes of the nodes that are leaving or have left.
    leavers: BTreeSet<usize>,
    next_spare: usize,
    faulty: Option<usize>,
    /// Index of the node that is killed or frozen.
    stopped: Option<usize>,
    /// Number of partitions held by killed nodes, all named by `status`; or the first that were not named.
    unmentioned: Result<usize, String>,
    failed: Vec<String>,
}

impl<'a> Run<'a> {
    fn begin(settings: &'a Settings) -> Self {
        let mut cluster = Cluster::relayed(Relay::new(settings.seed), settings.nodes, &[]);
        for node in &cluster.nodes()[1..] {
            node.join(&cluster[0]);
        }
        cluster.deploy(beside::LOADED);
        releases::deploy_beside(&cluster);
        for _ in 0..SPARE {
            cluster.add(&[]);
        }
        let members: BTreeSet<usize> = (0..settings.nodes).collect();
        let expected: Expected =
            members.iter().map(|&node| (cluster[node].name.clone(), cluster[node].data.clone())).collect();
        let entries: Vec<&Node> = members.iter().map(|&node| &cluster[node]).collect();
        let load = Load::new(settings.load.clone(), &entries);
        load.fill();
        load.phase("calm");
        load.go();
        let beside = Beside::new(&settings.load, &load.frozen(), &entries);
        let began = Instant::now();
        beside.go(began);
        let releases = Releases::begin(&cluster, settings.seed, settings.release_every, began);
        let run = Self {
            settings,
            random: StdRng::seed_from_u64(settings.seed ^ 0x0dd5),
            began,
            watch: Watch::new(expected),
            load,
            beside,
            releases: Some(releases),
            events: Vec::new(),
            changes: Vec::new(),
            next_spare: settings.nodes,
            members,
            leavers: BTreeSet::new(),
            faulty: None,
            stopped: None,
            unmentioned: Ok(0),
            failed: Vec::new(),
            cluster,
        };
        run.enter();
        run
    }

    fn carry_out(&mut self, Schedule(schedule): &Schedule) {
        let mut steps: Vec<(Instant, Step)> =
            schedule.iter().map(|(at, act)| (self.began + *at, Step::Do(*act))).collect();
        let end = self.began + self.settings.length;
        while !steps.is_empty() {
            let next = (0..steps.len()).min_by_key(|&step| steps[step].0).unwrap_or_default();
            let (at, step) = steps.remove(next);
            if !self.wait_until(at) {
                return;
            }
            match step {
                Step::Do(Act::Fault(fault, lasts)) => {
                    // Start one fault at a time: a fault that lasts longer delays the next.
                    let struck = if self.faulty.is_none() { self.strike(fault) } else { None };
                    match struck {
                        Some((event, victim)) => {
                            steps.push((Instant::now() + lasts, Step::Heal { event, fault, victim }));
                        }
                        None if Instant::now() < end + OVERTIME => {
                            steps.push((Instant::now() + AGAIN, Step::Do(Act::Fault(fault, lasts))));
                        }
                        None => self.failed.push(format!("{fault:?} was never possible")),
                    }
                }
                Step::Do(change) => self.change(change),
                Step::Heal { event, fault, victim } => self.heal(event, fault, victim),
            }
        }
        self.wait_until(end);
    }

    /// Wait until a time and print progress. Return false if the run must end.
    fn wait_until(&mut self, moment: Instant) -> bool {
        let mut told = Instant::now();
        while Instant::now() < moment {
            if self.settings.stop.load(Ordering::Relaxed) {
                return false;
            }
            self.collect_changes();
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                self.tell_progress();
            }
            let left = moment.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        !self.settings.stop.load(Ordering::Relaxed)
    }

    fn tell_progress(&self) {
        let report = self.load.report();
        let moving = self.watch.latest().map_or(0, |look| look.pending);
        self.say(&format!(
            "{} requests, {} failed; {moving} partitions change hands",
            report.requests(),
            report.failed_requests()
        ));
    }

    fn say(&self, what: &str) {
        println!("{:>8.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Record the start of an event and return its index.
    fn event(&mut self, what: String) -> usize {
        self.say(&what);
        self.load.phase(&what);
        self.events.push(Event {
            what,
            began: Instant::now(),
            ended: None,
            settled: None,
            note: String::new(),
        });
        self.events.len() - 1
    }

    fn end(&mut self, event: usize, at: Instant, note: String) {
        self.say(&format!(
            "{}: over{}{note}",
            self.events[event].what,
            if note.is_empty() { "" } else { ", " }
        ));
        let event = &mut self.events[event];
        event.ended = Some(at);
        event.note = note;
    }

    fn name(&self, node: usize) -> String {
        self.cluster[node].name.clone()
    }

    /// Return the node's name without the host, which is the same for all nodes.
    fn short(&self, node: usize) -> &str {
        let name = &self.cluster[node].name;
        name.split_once('@').map_or(name, |(short, _)| short)
    }

    fn place(&self, node: usize) -> Place {
        let node = &self.cluster[node];
        Place { name: node.name.clone(), listen: node.listen.clone(), data: node.data.clone() }
    }

    /// Return the members without the one that has a fault.
    fn sound(&self) -> Vec<usize> {
        self.members.iter().copied().filter(|node| Some(*node) != self.faulty).collect()
    }

    fn choose(&mut self, from: &[usize]) -> usize {
        from[self.random.random_range(0..from.len())]
    }

    /// Send the clients to the current members. A node that is still joining does not know the modules yet.
    fn enter(&self) {
        let here = self.members.iter().filter(|node| !self.is_new(**node));
        let entries: Vec<&Node> = here.map(|&node| &self.cluster[node]).collect();
        self.load.enter(&entries);
        self.beside.enter(&entries);
        self.place_releases();
    }

    /// Send releases to members with a running process, even if they are cut off.
    fn place_releases(&self) {
        let here =
            self.members.iter().copied().filter(|node| !self.is_new(*node) && Some(*node) != self.stopped);
        if let Some(releases) = &self.releases {
            releases.enter(here.map(|node| self.place(node)).collect());
        }
    }

    fn change(&mut self, act: Act) {
        let sound = self.sound();
        let say_to: Vec<Place> = sound.iter().map(|&node| self.place(node)).collect();
        match act {
            Act::Join | Act::Fault(..) => {
                let new = self.take_spare();
                let event = self.event(format!("join {}", self.short(new)));
                self.expect(new, true);
                self.members.insert(new);
                self.changes.push((event, Some(new), change::join(self.place(new), say_to)));
            }
            Act::Leave => {
                let old = self.choose(&sound);
                let event = self.event(format!("leave {}", self.short(old)));
                self.retire(old);
                let others = say_to.into_iter().filter(|place| place.name != self.name(old)).collect();
                self.changes.push((event, None, change::leave(self.name(old), others)));
            }
            Act::Replace => {
                let (old, new) = (self.choose(&sound), self.take_spare());
                let event = self.event(format!("replace {} by {}", self.short(old), self.short(new)));
                self.expect(new, true);
                let others: Vec<Place> =
                    say_to.into_iter().filter(|place| place.name != self.name(old)).collect();
                let change = change::replace(self.name(old), self.place(new), others);
                self.changes.push((event, Some(new), change));
                self.members.insert(new);
                self.retire(old);
            }
        }
    }

    fn take_spare(&mut self) -> usize {
        self.next_spare += 1;
        self.next_spare - 1
    }

    fn retire(&mut self, node: usize) {
        self.members.remove(&node);
        self.leavers.insert(node);
        self.expect(node, false);
        self.enter();
    }

    fn expect(&self, node: usize, there: bool) {
        let (name, data) = (self.name(node), self.cluster[node].data.clone());
        self.watch.expect(|expected| {
            if there {
                expected.insert(name, data)
            } else {
                expected.remove(&name)
            };
        });
    }

    fn collect_changes(&mut self) {
        while let Some(done) = self.changes.iter().position(|(_, _, change)| change.is_finished()) {
            let (event, _, change) = self.changes.remove(done);
            match change.join().map(|changed| (changed.accepted, changed.attempts)) {
                Ok((Ok(at), attempts)) => {
                    let note = if attempts > 1 { format!("tried {attempts} times") } else { String::new() };
                    self.end(event, at, note);
                }
                Ok((Err(why), _)) => self.failed.push(format!("{}: {why}", self.events[event].what)),
                Err(_) => self.failed.push(format!("{}: its thread panicked", self.events[event].what)),
            }
            self.enter();
        }
    }

    /// Start a fault on a node and return the event and the node; `None` if it is not possible at the moment.
    fn strike(&mut self, fault: Fault) -> Option<(usize, usize)> {
        // Never choose a node that is joining or leaving: faults of such nodes are tested elsewhere.
        let victim = match fault {
            Fault::KillClaimant => {
                let claimant = self.claimant()?;
                self.members.contains(&claimant).then_some(claimant)?
            }
            _ => {
                let settled: Vec<usize> =
                    self.sound().into_iter().filter(|node| !self.is_new(*node)).collect();
                self.choose(&settled)
            }
        };
        self.faulty = Some(victim);
        if fault.stops() {
            self.stopped = Some(victim);
            self.load.freeze(&self.cluster[victim], true);
            self.place_releases();
        }
        let relay = self.cluster.relay();
        match fault {
            Fault::KillClaimant => self.cluster[victim].kill(),
            Fault::Pause => self.cluster[victim].pause(),
            Fault::CutOff => relay.isolate(victim),
            Fault::Mute => relay.mute(victim),
            Fault::Deafen => relay.deafen(victim),
        }
        let what = match fault {
            Fault::KillClaimant => "kill -9 claimant",
            Fault::Pause => "SIGSTOP",
            Fault::CutOff => "cut off",
            Fault::Mute => "one way (is not heard)",
            Fault::Deafen => "one way (does not hear)",
        };
        let event = self.event(format!("{what} {}", self.short(victim)));
        if fault == Fault::KillClaimant {
            self.release_now();
        }
        Some((event, victim))
    }

    fn release_now(&self) {
        if let Some(releases) = &self.releases {
            releases.now();
        }
    }

    /// Return true if the node is still joining.
    fn is_new(&self, node: usize) -> bool {
        self.changes.iter().any(|(_, new, _)| *new == Some(node))
    }

    fn heal(&mut self, event: usize, fault: Fault, victim: usize) {
        let mut note = String::new();
        match fault {
            Fault::KillClaimant => {
                let others: Vec<&Node> = self.sound().into_iter().map(|node| &self.cluster[node]).collect();
                let held = losses::held_by_dead(&self.name(victim), &others);
                note = format!("it held {} partitions", held.len());
                self.load.doubt(held.iter().copied().collect());
                self.beside.doubt(held.iter().copied().collect());
                self.cluster[victim].start();
                let mentioned = losses::check_mentioned(&self.cluster[victim], &held);
                self.unmentioned = self.unmentioned.clone().and_then(|so_far| Ok(so_far + mentioned?));
            }
            Fault::Pause => self.cluster[victim].resume(),
            Fault::CutOff | Fault::Mute | Fault::Deafen => self.cluster.relay().heal(),
        }
        self.load.freeze(&self.cluster[victim], false);
        (self.faulty, self.stopped) = (None, None);
        self.end(event, Instant::now(), note);
        self.enter();
        if fault == Fault::KillClaimant {
            self.release_now();
        }
    }

    /// Return the claimant, according to the first member without a fault.
    fn claimant(&self) -> Option<usize> {
        let asked = *self.sound().first()?;
        let status = self.cluster[asked].json(&["status"]);
        let name = status.lines().first()?["claimant"].as_str()?.to_owned();
        self.cluster.nodes().iter().position(|node| node.name == name)
    }

    fn finish(mut self) -> Outcome {
        self.cluster.relay().heal();
        if self.settings.stop.load(Ordering::Relaxed) {
            let oracles = vec![("the run was completed", Err("it was interrupted".to_owned()))];
            return self.outcome(self.load.report(), self.beside.reports(), oracles);
        }
        self.say("all changes and faults are over; the cluster settles");
        self.load.phase("settles");
        let deadline = Instant::now() + SETTLE;
        while !self.changes.is_empty() && Instant::now() < deadline {
            self.collect_changes();
            thread::sleep(Duration::from_millis(50));
        }
        for (event, ..) in std::mem::take(&mut self.changes) {
            self.failed.push(format!("{}: no clear answer to the end", self.events[event].what));
        }
        let released = self.releases.take().map_or(Ok(String::new()), Releases::end);
        let over = Instant::now();
        let settled = self.settle(over);
        let ends = self.ends();
        let current = self.current();
        self.load.phase("settled");
        thread::sleep(Duration::from_secs(1));
        self.say("all keys are read back");
        let (report, beside) = (self.load.verify(), self.beside.verify());
        for event in &mut self.events {
            event.settled = event.ended.and_then(|ended| self.watch.settled_after(ended));
        }
        let carried_out = if self.failed.is_empty() {
            Ok(format!("{} events", self.events.len()))
        } else {
            Err(self.failed.join("; "))
        };
        let sound = if report.is_sound() {
            Ok(format!("{} answers of `keys` complete and right", report.complete))
        } else {
            Err("see below".to_owned())
        };
        let oracles = vec![
            ("every change was accepted, every fault happened", carried_out),
            ("no acknowledged write lost, none revived, every request answered", sound),
            (
                "no module is affected by another, and no request fails with `internal`",
                apart(&report, &beside),
            ),
            ("every release is answered in time, with its true result", released),
            ("every node runs the current releases", current),
            ("no two nodes ever show different rings of one epoch", self.watch.one_truth()),
            ("the ring converges, `transfers` is empty", settled),
            ("a node that has left ends by itself", ends),
            (
                "the partitions of a killed node are shown as possible-loss",
                self.unmentioned.clone().map(|held| format!("{held} partitions of each module")),
            ),
        ];
        let outcome = self.outcome(report, beside, oracles);
        if !outcome.holds() {
            self.cluster.keep_directory();
        }
        outcome
    }

    fn outcome(&self, report: load::Report, beside: Vec<beside::Report>, oracles: Vec<Oracle>) -> Outcome {
        Outcome { began: self.began, events: self.events.clone(), report, beside, oracles }
    }

    /// Check that every member runs the current release of every module.
    fn current(&self) -> Result<String, String> {
        let deadline = Instant::now() + SETTLE;
        let asked = self.sound().first().map(|&node| &self.cluster[node]).ok_or("no member is reachable")?;
        loop {
            let current = releases::run_everywhere(asked, self.members.len());
            if current.is_ok() || Instant::now() >= deadline {
                return current;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn settle(&self, over: Instant) -> Result<String, String> {
        let deadline = over + SETTLE;
        loop {
            if let Some(settled) = self.watch.settled_after(over) {
                let took = settled.saturating_duration_since(over);
                return Ok(format!(
                    "{} nodes, {:.1} s after the end",
                    self.members.len(),
                    took.as_secs_f64()
                ));
            }
            if Instant::now() >= deadline {
                let amiss = self.watch.latest().map(|look| look.amiss.join("; ")).unwrap_or_default();
                return Err(format!("not within {SETTLE:?}: {amiss}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Check that the processes of the nodes that left have ended by themselves.
    fn ends(&mut self) -> Result<String, String> {
        let deadline = Instant::now() + LIMIT;
        for node in self.leavers.clone() {
            while self.cluster[node].is_running() {
                if Instant::now() >= deadline {
                    return Err(format!("{} still runs", self.name(node)));
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(format!("{} nodes", self.leavers.len()))
    }
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
