//! The driver of a run: a cluster whose members change and suffer one fault after another, while clients, which differ from
//! scenario to scenario, send requests.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::change::{self, Change, Place};
use super::figures::{Event, Oracle};
use super::releases::{self, Released, Releases};
use super::schedule::{Act, Fault, Schedule};
use super::watch::{Expected, Watch};
use crate::harness::{Cluster, LIMIT, Node};

/// Longest time for the cluster to settle after the last change and fault.
pub(super) const SETTLE: Duration = Duration::from_secs(60);
/// Pause between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// Pause before a fault or change that is not possible at the moment is tried again, and the time after the end of the
/// run at which no more tries are made.
const AGAIN: Duration = Duration::from_millis(500);
const OVERTIME: Duration = Duration::from_secs(60);
/// Share of the restarted processes that are killed as they recover, and the longest time from the start to that.
const AGAIN_IN: (u32, u32) = (1, 3);
const RECOVERY: Duration = Duration::from_millis(1_500);
/// Limit of the number of nodes that run without being members yet: each of them costs processor time.
const SPARES: usize = 3;

/// The clients of a run, as far as its driver has to know them.
pub(super) trait Clients {
    /// Send the clients to these nodes.
    fn enter(&self, nodes: &[&Node]);
    /// A node's process is killed or frozen, or it runs again.
    fn freeze(&self, node: &Node, frozen: bool);
    /// An event begins.
    fn phase(&self, what: &str);
    /// Return a line of progress.
    fn progress(&self) -> String;

    /// Return false to postpone a fault: these nodes were restarted, and may not have recovered from that.
    fn recovered(&self, restarted: &[&Node]) -> bool {
        let _ = restarted;
        true
    }
    /// A killed node is about to be restarted. Return a note for the table of events.
    fn before_restart(&mut self, dead: &Node, others: &[&Node]) -> String {
        let _ = (dead, others);
        String::new()
    }
    /// A killed node serves again.
    fn after_restart(&mut self, node: &Node) {
        let _ = node;
    }
}

/// Settings that all runs have.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// Duration of the load with its changes and faults.
    pub(super) length: Duration,
    /// Seed for the victims and the releases.
    pub(super) seed: u64,
    /// Number of members at the start.
    pub(super) nodes: usize,
    /// Arguments of every node's `start`.
    pub(super) arguments: Vec<String>,
    /// Average time between two releases.
    pub(super) release_every: Duration,
    /// Set from outside to end the run early.
    pub(super) stop: Arc<AtomicBool>,
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

/// A run.
pub(super) struct Run<C> {
    terms: Terms,
    random: StdRng,
    pub(super) began: Instant,
    // Declared before `cluster`, so that clients stop before the nodes are killed.
    pub(super) clients: C,
    /// `None` after the last release.
    releases: Option<Releases>,
    /// Number of modules that are released.
    modules: usize,
    pub(super) watch: Watch,
    pub(super) cluster: Cluster,
    pub(super) events: Vec<Event>,
    /// Changes in progress: the event, the node that joins, and the operator's thread.
    changes: Vec<(usize, Option<usize>, Change)>,
    /// Indexes of the nodes that are members, or are joining, and stay.
    pub(super) members: BTreeSet<usize>,
    /// Indexes of the nodes that are leaving or have left.
    leavers: BTreeSet<usize>,
    next_spare: usize,
    /// Number of nodes that have yet to join.
    joins: usize,
    faulty: Option<usize>,
    /// Index of the node that is killed or frozen.
    stopped: Option<usize>,
    /// Indexes of the nodes whose process has ended in a fault.
    restarted: BTreeSet<usize>,
    failed: Vec<String>,
}

impl<C: Clients> Run<C> {
    /// Begin a run with these released modules in a cluster that has them already.
    pub(super) fn begin(terms: Terms, cluster: Cluster, released: &[Released], clients: C) -> Self {
        let began = Instant::now();
        let members: BTreeSet<usize> = (0..terms.nodes).collect();
        let expected: Expected =
            members.iter().map(|&node| (cluster[node].name.clone(), cluster[node].data.clone())).collect();
        Self {
            random: StdRng::seed_from_u64(terms.seed ^ 0x0dd5),
            began,
            watch: Watch::new(expected),
            clients,
            releases: Some(Releases::begin(&cluster, released, terms.seed, terms.release_every, began)),
            modules: released.len(),
            events: Vec::new(),
            changes: Vec::new(),
            next_spare: terms.nodes,
            joins: 0,
            members,
            leavers: BTreeSet::new(),
            faulty: None,
            stopped: None,
            restarted: BTreeSet::new(),
            failed: Vec::new(),
            cluster,
            terms,
        }
    }

    /// Start a cluster of this many members behind a relay, without modules.
    pub(super) fn cluster(terms: &Terms) -> Cluster {
        let arguments: Vec<&str> = terms.arguments.iter().map(String::as_str).collect();
        let relay = crate::relay::Relay::new(terms.seed);
        let cluster = Cluster::relayed(relay, terms.nodes, &arguments);
        for node in &cluster.nodes()[1..] {
            node.join(&cluster[0]);
        }
        cluster
    }

    /// Carry out a schedule, and return at the end of the run.
    pub(super) fn carry_out(&mut self, Schedule(schedule): &Schedule) {
        self.joins = schedule.iter().filter(|(_, act)| matches!(act, Act::Join | Act::Replace)).count();
        self.stock();
        self.enter();
        let mut steps: Vec<(Instant, Step)> =
            schedule.iter().map(|(at, act)| (self.began + *at, Step::Do(*act))).collect();
        let end = self.began + self.terms.length;
        while !steps.is_empty() {
            let next = (0..steps.len()).min_by_key(|&step| steps[step].0).unwrap_or_default();
            let (at, step) = steps.remove(next);
            if !self.wait_until(at) {
                return;
            }
            let postponed = match step {
                Step::Do(Act::Fault(fault, lasts)) => {
                    // Start one fault at a time: a fault that lasts longer delays the next.
                    let struck = if self.faulty.is_none() { self.strike(fault) } else { None };
                    match struck {
                        Some((event, victim)) => {
                            steps.push((Instant::now() + lasts, Step::Heal { event, fault, victim }));
                            None
                        }
                        None => Some(Act::Fault(fault, lasts)),
                    }
                }
                Step::Do(change) => (!self.change(change)).then_some(change),
                Step::Heal { event, fault, victim } => {
                    self.heal(event, fault, victim);
                    None
                }
            };
            match postponed {
                Some(act) if Instant::now() < end + OVERTIME => {
                    steps.push((Instant::now() + AGAIN, Step::Do(act)));
                }
                Some(act) => self.failed.push(format!("{act:?} was never possible")),
                None => {}
            }
        }
        self.wait_until(end);
    }

    /// Wait until a time and print progress. Return false if the run must end.
    fn wait_until(&mut self, moment: Instant) -> bool {
        let mut told = Instant::now();
        while Instant::now() < moment {
            if self.is_interrupted() {
                return false;
            }
            self.collect_changes();
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let moving = self.watch.latest().map_or(0, |look| look.pending);
                self.say(&format!("{}; {moving} partitions change hands", self.clients.progress()));
            }
            let left = moment.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        !self.is_interrupted()
    }

    /// Return true if the run was told to end early.
    pub(super) fn is_interrupted(&self) -> bool {
        self.terms.stop.load(Ordering::Relaxed)
    }

    /// Print a line with the time of the run.
    pub(super) fn say(&self, what: &str) {
        println!("{:>8.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Record the start of an event and return its index.
    fn event(&mut self, what: String) -> usize {
        self.say(&what);
        self.clients.phase(&what);
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

    /// Return the members that have joined and have no fault.
    fn settled(&self) -> Vec<usize> {
        self.sound().into_iter().filter(|node| !self.is_new(*node)).collect()
    }

    /// Return a member without a fault, to ask it about the cluster.
    pub(super) fn asked(&self) -> Option<&Node> {
        self.sound().first().map(|&node| &self.cluster[node])
    }

    fn choose(&mut self, from: &[usize]) -> usize {
        from[self.random.random_range(0..from.len())]
    }

    /// Send the clients to the current members. A node that is still joining does not know the modules yet.
    fn enter(&self) {
        let here = self.members.iter().filter(|node| !self.is_new(**node));
        let entries: Vec<&Node> = here.map(|&node| &self.cluster[node]).collect();
        self.clients.enter(&entries);
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

    /// Start a change. Return false if it is not possible at the moment.
    fn change(&mut self, act: Act) -> bool {
        let sound = self.sound();
        let say_to: Vec<Place> = sound.iter().map(|&node| self.place(node)).collect();
        match act {
            Act::Join | Act::Fault(..) => {
                let Some(new) = self.take_spare() else { return false };
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
                let Some(new) = self.take_spare() else { return false };
                let old = self.choose(&sound);
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
        true
    }

    fn take_spare(&mut self) -> Option<usize> {
        if self.next_spare == self.cluster.nodes().len() {
            self.stock();
        }
        (self.next_spare < self.cluster.nodes().len()).then(|| {
            self.next_spare += 1;
            self.joins -= 1;
            self.next_spare - 1
        })
    }

    /// Start nodes that will join. Not during a fault, whose cuts the new nodes would not have.
    fn stock(&mut self) {
        while self.faulty.is_none() && self.cluster.nodes().len() - self.next_spare < self.joins.min(SPARES) {
            let arguments: Vec<&str> = self.terms.arguments.iter().map(String::as_str).collect();
            self.cluster.add(&arguments);
        }
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
        let restarted = self.restarted.intersection(&self.members).map(|&node| &self.cluster[node]);
        if !self.clients.recovered(&restarted.collect::<Vec<_>>()) {
            return None;
        }
        // Never choose a node that is joining or leaving: faults of such nodes are tested elsewhere.
        let settled = self.settled();
        let victim = match fault {
            Fault::KillClaimant => {
                let claimant = self.claimant()?;
                self.members.contains(&claimant).then_some(claimant)?
            }
            _ => self.choose(&settled),
        };
        let others: Vec<usize> = settled.into_iter().filter(|node| *node != victim).collect();
        let other = if fault.parts() { Some(self.choose(&others)) } else { None };
        self.faulty = Some(victim);
        if fault.ends() {
            self.restarted.insert(victim);
        }
        if fault.stops() {
            self.stopped = Some(victim);
            self.clients.freeze(&self.cluster[victim], true);
            self.place_releases();
        }
        let relay = self.cluster.relay();
        match (fault, other) {
            (Fault::CutOff, _) => relay.isolate(victim),
            (Fault::Mute, _) => relay.mute(victim),
            (Fault::Deafen, _) => relay.deafen(victim),
            (Fault::Pause, _) => self.cluster[victim].pause(),
            (Fault::PartOneWay, Some(other)) => relay.cut(victim, other),
            (Fault::Part, Some(other)) => {
                relay.cut(victim, other);
                relay.cut(other, victim);
            }
            (Fault::Stop, _) => {
                let code = self.cluster[victim].stop();
                if code != Some(0) {
                    self.failed.push(format!("{} ended with {code:?} after SIGTERM", self.name(victim)));
                }
            }
            _ => self.cluster[victim].kill(),
        }
        if fault == Fault::DeleteItems {
            delete_items(&self.cluster[victim]);
        }
        let name = self.short(victim);
        let beside = other.map_or("", |other| self.short(other));
        let what = match fault {
            Fault::KillClaimant => format!("kill -9 claimant {name}"),
            Fault::Kill => format!("kill -9 {name}"),
            Fault::DeleteItems => format!("kill -9 and delete items/ of {name}"),
            Fault::Stop => format!("SIGTERM {name}"),
            Fault::Pause => format!("SIGSTOP {name}"),
            Fault::CutOff => format!("cut off {name}"),
            Fault::Mute => format!("one way (is not heard) {name}"),
            Fault::Deafen => format!("one way (does not hear) {name}"),
            Fault::Part => format!("part {name} and {beside}"),
            Fault::PartOneWay => format!("one way (no {name} to {beside})"),
        };
        let event = self.event(what);
        if fault.ends() {
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
        if fault.ends() {
            let others: Vec<&Node> = self.sound().into_iter().map(|node| &self.cluster[node]).collect();
            note = self.clients.before_restart(&self.cluster[victim], &others);
            if fault != Fault::KillClaimant && self.random.random_ratio(AGAIN_IN.0, AGAIN_IN.1) {
                // The moment is drawn and not awaited: it must be at no particular state of the node.
                self.cluster[victim].begin_start();
                thread::sleep(self.random.random_range(Duration::ZERO..RECOVERY));
                self.cluster[victim].kill();
                note = format!("{note}killed once more as it started");
            }
            self.cluster[victim].start();
            self.clients.after_restart(&self.cluster[victim]);
        } else if fault == Fault::Pause {
            self.cluster[victim].resume();
        } else {
            self.cluster.relay().heal();
        }
        self.clients.freeze(&self.cluster[victim], false);
        (self.faulty, self.stopped) = (None, None);
        self.end(event, Instant::now(), note);
        self.enter();
        if fault.ends() {
            self.release_now();
        }
        self.stock();
    }

    /// Return the claimant, according to the first member without a fault.
    fn claimant(&self) -> Option<usize> {
        let status = self.asked()?.json(&["status"]);
        let name = status.lines().first()?["claimant"].as_str()?.to_owned();
        self.cluster.nodes().iter().position(|node| node.name == name)
    }

    /// Wait until the cluster has settled after the end of the run, and return the rules that hold for every run.
    pub(super) fn settle(&mut self) -> Vec<Oracle> {
        self.cluster.relay().heal();
        if self.is_interrupted() {
            return vec![("the run was completed", Err("it was interrupted".to_owned()))];
        }
        self.say("all changes and faults are over; the cluster settles");
        self.clients.phase("settles");
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
        let settled = self.rest(over);
        let ends = self.ends();
        let current = self.current();
        let carried_out = if self.failed.is_empty() {
            Ok(format!("{} events", self.events.len()))
        } else {
            Err(self.failed.join("; "))
        };
        vec![
            ("every change was accepted, every fault happened", carried_out),
            ("every release is answered in time, with its true result", released),
            ("every node runs the current releases", current),
            ("the ring converges, `transfers` is empty", settled),
            ("a node that has left ends by itself", ends),
        ]
    }

    /// Note when the cluster had settled after each event, and return the rule on what all nodes have shown.
    pub(super) fn look_back(&mut self) -> Oracle {
        for event in &mut self.events {
            event.settled = event.ended.and_then(|ended| self.watch.settled_after(ended));
        }
        ("no two nodes ever show different rings of one epoch", self.watch.one_truth())
    }

    /// Check that every member runs the current release of every module.
    fn current(&self) -> Result<String, String> {
        let deadline = Instant::now() + SETTLE;
        let asked = self.asked().ok_or("no member is reachable")?;
        loop {
            let current = releases::run_everywhere(asked, self.modules, self.members.len());
            if current.is_ok() || Instant::now() >= deadline {
                return current;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn rest(&self, over: Instant) -> Result<String, String> {
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

/// Delete the database of items of a node that does not run.
fn delete_items(node: &Node) {
    let items = node.data.join("items");
    std::fs::remove_dir_all(&items).unwrap_or_else(|error| panic!("{}: {error}", items.display()));
}
