//! The membership run: two nodes join, one leaves, one is replaced, while the claimant is killed, a
//! node freezes, one is cut off both ways and one each way.
//!
//! The module keeps its items in memory and has one replica, so what a killed node held is gone
//! with it: those partitions are excluded from the account until they are written again, and
//! `status` must name them as possibly lost. Everything else must be there in the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::change::{self, Change, Place};
use super::figures::{Event, Outcome};
use super::schedule::{Act, Fault, Schedule};
use super::watch::{Expected, Watch};
use crate::harness::{Cluster, LIMIT, Node, until};
use crate::load::{self, Load};
use crate::relay::Relay;

/// How a run is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long the load lasts while things happen.
    pub length: Duration,
    /// Of the schedule, the victims and the load.
    pub seed: u64,
    /// Members at the beginning.
    pub nodes: usize,
    /// The load.
    pub load: load::Settings,
    /// Set by whoever wants it to end early, which is then a failure.
    pub stop: Arc<AtomicBool>,
}

impl Settings {
    /// For so long.
    pub fn new(length: Duration, seed: u64) -> Self {
        let load = load::Settings {
            clients: 12,
            keys: 12_000,
            pad: 200,
            limit: Duration::from_secs(4),
            grace: Duration::from_secs(2),
            // Leaves the two cores some time for eight nodes.
            rest: Duration::from_millis(3),
            roam: true,
            seed,
            ..load::Settings::default()
        };
        Self { length, seed, nodes: 5, load, stop: Arc::default() }
    }
}

/// Nodes that come later: two that join, one that replaces.
const SPARE: usize = 3;
/// How long the cluster may take to settle when everything is over.
const SETTLE: Duration = Duration::from_secs(60);
/// Between two lines of progress when nothing happens.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long `status` may take to name what a node that was killed may have lost.
const MENTION: Duration = Duration::from_secs(10);
/// Before a fault that cannot be at the moment is tried again, and how long after the end at most.
const AGAIN: Duration = Duration::from_millis(500);
const OVERTIME: Duration = Duration::from_secs(30);
/// For how long nothing may have come to a dead node before what it held is counted up.
const STILL: Duration = Duration::from_secs(1);

/// Runs it.
///
/// # Panics
/// If nodes do not start, or do not do at all what they are told.
pub fn membership(settings: &Settings) -> Outcome {
    let mut run = Run::begin(settings);
    run.carry_out(&Schedule::membership(settings.seed, settings.length));
    run.finish()
}

/// What is to be done at a time.
enum Step {
    Do(Act),
    /// The fault of this event is over.
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
    // Dropped first, so that nobody asks nodes that are being killed.
    load: Load,
    watch: Watch,
    cluster: Cluster,
    events: Vec<Event>,
    /// Event, the node that comes, and the change.
    changes: Vec<(usize, Option<usize>, Change)>,
    /// Nodes that are members and stay: by number.
    members: BTreeSet<usize>,
    /// Nodes that leave or have left.
    leavers: BTreeSet<usize>,
    next_spare: usize,
    faulty: Option<usize>,
    /// What killed nodes held, and is not found in `status` as possibly lost.
    unmentioned: Result<usize, String>,
    failed: Vec<String>,
}

impl<'a> Run<'a> {
    fn begin(settings: &'a Settings) -> Self {
        let mut cluster = Cluster::relayed(Relay::new(settings.seed), settings.nodes, &[]);
        for node in &cluster.nodes()[1..] {
            node.join(&cluster[0]);
        }
        cluster.deploy("guests/kv");
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
        Self {
            settings,
            random: StdRng::seed_from_u64(settings.seed ^ 0x0dd5),
            began: Instant::now(),
            watch: Watch::new(expected),
            load,
            events: Vec::new(),
            changes: Vec::new(),
            next_spare: settings.nodes,
            members,
            leavers: BTreeSet::new(),
            faulty: None,
            unmentioned: Ok(0),
            failed: Vec::new(),
            cluster,
        }
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
                    // One at a time; what held up the one before holds up this one.
                    let struck = if self.faulty.is_none() { self.strike(fault) } else { None };
                    match struck {
                        Some((event, victim)) => {
                            steps.push((Instant::now() + lasts, Step::Heal { event, fault, victim }));
                        }
                        None if Instant::now() < end + OVERTIME => {
                            steps.push((Instant::now() + AGAIN, Step::Do(Act::Fault(fault, lasts))));
                        }
                        None => self.failed.push(format!("{fault:?} was possible at no time")),
                    }
                }
                Step::Do(change) => self.change(change),
                Step::Heal { event, fault, victim } => self.heal(event, fault, victim),
            }
        }
        self.wait_until(end);
    }

    /// Waits, and tells how it goes. False if it shall all end.
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

    /// An event begins; says its number.
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

    /// For people: all nodes have the same host.
    fn short(&self, node: usize) -> &str {
        let name = &self.cluster[node].name;
        name.split_once('@').map_or(name, |(short, _)| short)
    }

    fn place(&self, node: usize) -> Place {
        let node = &self.cluster[node];
        Place { name: node.name.clone(), listen: node.listen.clone(), data: node.data.clone() }
    }

    /// Members that can be spoken to.
    fn sound(&self) -> Vec<usize> {
        self.members.iter().copied().filter(|node| Some(*node) != self.faulty).collect()
    }

    fn choose(&mut self, from: &[usize]) -> usize {
        from[self.random.random_range(0..from.len())]
    }

    /// Clients go to those who are members now; who is only joining would not know what they want.
    fn enter(&self) {
        let here = self.members.iter().filter(|node| !self.is_new(**node));
        let entries: Vec<&Node> = here.map(|&node| &self.cluster[node]).collect();
        self.load.enter(&entries);
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
                    let note = if attempts > 1 { format!("said {attempts} times") } else { String::new() };
                    self.end(event, at, note);
                }
                Ok((Err(why), _)) => self.failed.push(format!("{}: {why}", self.events[event].what)),
                Err(_) => self.failed.push(format!("{}: its thread panicked", self.events[event].what)),
            }
            self.enter();
        }
    }

    /// Something befalls a node. None if it cannot at the moment.
    fn strike(&mut self, fault: Fault) -> Option<(usize, usize)> {
        // Those that are on their way in or out are left alone: what becomes of them is another test.
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
        if matches!(fault, Fault::KillClaimant | Fault::Pause) {
            self.load.freeze(&self.cluster[victim], true);
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
        Some((self.event(format!("{what} {}", self.short(victim))), victim))
    }

    /// Is its joining still under way?
    fn is_new(&self, node: usize) -> bool {
        self.changes.iter().any(|(_, new, _)| *new == Some(node))
    }

    fn heal(&mut self, event: usize, fault: Fault, victim: usize) {
        let mut note = String::new();
        match fault {
            Fault::KillClaimant => {
                let held = self.held_by_dead(victim);
                note = format!("it held {} partitions", held.len());
                self.load.doubt(held.iter().copied().collect());
                self.cluster[victim].start();
                self.check_mentioned(victim, &held);
            }
            Fault::Pause => self.cluster[victim].resume(),
            Fault::CutOff | Fault::Mute | Fault::Deafen => self.cluster.relay().heal(),
        }
        self.load.freeze(&self.cluster[victim], false);
        self.faulty = None;
        self.end(event, Instant::now(), note);
        self.enter();
    }

    /// Who decides now, as a member says.
    fn claimant(&self) -> Option<usize> {
        let asked = *self.sound().first()?;
        let status = self.cluster[asked].json(&["status"]);
        let name = status.lines().first()?["claimant"].as_str()?.to_owned();
        self.cluster.nodes().iter().position(|node| node.name == name)
    }

    /// What the dead node holds, once nothing can come to it any more: there is a new claimant, no
    /// sender is about to give it something, and for a while nothing changed.
    fn held_by_dead(&self, dead: usize) -> BTreeSet<u16> {
        let name = self.name(dead);
        let mut before = (BTreeSet::new(), Instant::now());
        until("what the dead node held is certain", || {
            let asked = &self.cluster[*self.sound().first()?];
            let status = asked.json(&["status"]).lines().first()?.clone();
            let led = status["quorum"] == true && status["claimant"].as_str().is_some_and(|now| now != name);
            let coming = self.sound().iter().any(|&node| self.gives_to(node, &name));
            let held = owned(asked, &name)?;
            if !led || coming || held != before.0 {
                before = (held, Instant::now());
            }
            (before.1.elapsed() >= STILL).then(|| before.0.clone())
        })
    }

    /// Is this node about to give the named one a partition? Yes, if it does not say.
    fn gives_to(&self, node: usize, name: &str) -> bool {
        let rows = self.cluster[node].json(&["transfers"]);
        let rows = rows.lines().into_iter().next().unwrap_or_default();
        let sealed = |row: &serde_json::Value| row["to"] == name && row["state"] == "sealed";
        rows.as_array().is_none_or(|rows| rows.iter().any(sealed))
    }

    /// The `status` of a node that was killed names what may be lost.
    fn check_mentioned(&mut self, asked: usize, held: &BTreeSet<u16>) {
        let deadline = Instant::now() + MENTION;
        loop {
            let status = self.cluster[asked].json(&["status"]);
            let mentioned = possible_losses(&status.lines().into_iter().next().unwrap_or_default());
            let silent: Vec<u16> = held.difference(&mentioned).copied().collect();
            if silent.is_empty() {
                self.unmentioned = self.unmentioned.clone().map(|so_far| so_far + held.len());
                return;
            }
            if Instant::now() >= deadline {
                self.unmentioned =
                    Err(format!("`status` does not name {silent:?}, which a killed node held"));
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn finish(mut self) -> Outcome {
        self.cluster.relay().heal();
        if self.settings.stop.load(Ordering::Relaxed) {
            let oracles = vec![("the run came to its end", Err("it was interrupted".to_owned()))];
            let report = self.load.report();
            return Outcome { began: self.began, events: std::mem::take(&mut self.events), report, oracles };
        }
        self.say("everything is over; the cluster settles");
        self.load.phase("settles");
        let deadline = Instant::now() + SETTLE;
        while !self.changes.is_empty() && Instant::now() < deadline {
            self.collect_changes();
            thread::sleep(Duration::from_millis(50));
        }
        for (event, ..) in std::mem::take(&mut self.changes) {
            self.failed.push(format!("{}: no clear answer to the end", self.events[event].what));
        }
        let over = Instant::now();
        let settled = self.settle(over);
        let ends = self.ends();
        self.load.phase("settled");
        thread::sleep(Duration::from_secs(1));
        self.say("all keys are read back");
        let report = self.load.verify();
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
            ("no two nodes ever show different rings of one epoch", self.watch.one_truth()),
            ("the ring converges, `transfers` is empty", settled),
            ("who has left ends by itself", ends),
            (
                "what a killed node held is shown as possible-loss",
                self.unmentioned.clone().map(|held| format!("{held} partitions")),
            ),
        ];
        let outcome =
            Outcome { began: self.began, events: std::mem::take(&mut self.events), report, oracles };
        if !outcome.holds() {
            self.cluster.keep_directory();
        }
        outcome
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

    /// Those who left are no process any more.
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

/// The partitions that the named node owns.
fn owned(asked: &Node, name: &str) -> Option<BTreeSet<u16>> {
    let ring = asked.json(&["ring"]).lines().into_iter().next()?;
    let rows = ring["partitions"].as_array()?;
    Some((0..).zip(rows).filter(|(_, row)| row["replicas"][0] == name).map(|(id, _)| id).collect())
}

/// The partitions that `status` says may have lost something: `partitions 1-3, 7 are gone` of a node
/// that started again, `partition 4` of one that came to it without its items.
pub(crate) fn possible_losses(status: &serde_json::Value) -> BTreeSet<u16> {
    let alerts = status["alerts"].as_array().cloned().unwrap_or_default();
    let lines =
        alerts.iter().filter_map(|alert| alert.as_str()).filter(|alert| alert.contains("possible-loss"));
    lines.flat_map(named).collect()
}

fn named(line: &str) -> Vec<u16> {
    let Some((_, after)) = line.split_once("partition") else { return Vec::new() };
    let words = after.trim_start_matches('s').split([' ', ',', ':']).filter(|word| !word.is_empty());
    let ranges = words.map_while(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn partitions_are_read_from_both_kinds_of_alert() {
        let started =
            "possible-loss: kv: the node started again: items in memory of partitions 0-2, 7 are gone";
        assert_eq!(super::named(started), [0, 1, 2, 7]);
        assert_eq!(super::named("possible-loss:  partition 4: the partition was taken over"), [4]);
        assert_eq!(super::named("possible-loss: nothing"), [] as [u16; 0]);
    }
}
