//! The crash scenario: nodes with a durable module are killed under a write load, again and again, and after each
//! restart every key is compared with the model of its acknowledged writes.
//!
//! With [`Settings::power`] the data directory of each node is a disk image, and a crash is a loss of power: the process
//! is stopped, the image is copied, and the next process starts from the copy. A killed process leaves its writes to the
//! page cache, so only a loss of power shows that an acknowledged write was synced.

mod disks;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::figures::Oracle;
use crate::guests::component;
use crate::harness::{Node, until};
use crate::image::Unavailable;
use crate::load::{self, Load, Report};
use disks::Disks;

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of crashes.
    pub cycles: u32,
    /// Seed for the victims, the moments and the load.
    pub seed: u64,
    /// Number of nodes; one of them crashes at a time.
    pub nodes: usize,
    /// Whether a crash is a loss of power.
    pub power: bool,
    /// The guest project of the module under load. Its name must be that of the load's module.
    pub guest: &'static str,
    /// The load.
    pub load: load::Settings,
    /// Whether to keep the directories of a run that fails, for inspection.
    pub keep: bool,
    /// Set from outside to end the run early, which counts as a failure.
    pub stop: Arc<AtomicBool>,
}

impl Settings {
    /// Return the settings of a run with a single node.
    pub fn new(cycles: u32, seed: u64) -> Self {
        let load = load::Settings {
            clients: 8,
            // Few keys with long values: a read-back is short, and the store flushes and compacts every few cycles.
            keys: 400,
            pad: 6_000,
            // These are stored apart from their keys.
            long_pad: 40_000,
            ring_size: RING,
            limit: Duration::from_secs(4),
            grace: Duration::from_secs(2),
            roam: true,
            surveys: false,
            seed,
            ..load::Settings::default()
        };
        Self {
            cycles,
            seed,
            nodes: 1,
            power: false,
            guest: "guests/kv",
            load,
            keep: true,
            stop: Arc::default(),
        }
    }
}

/// Number of partitions: each is a vnode to start again after a crash.
const RING: u16 = 8;
/// Longest time from the resumption of the load to a crash, in addition to the time that [`WRITES`] take.
const LONGEST: Duration = Duration::from_millis(250);
/// Number of writes that are acknowledged between two crashes, at least and at most.
const WRITES: std::ops::RangeInclusive<u64> = 20..=400;
/// Longest time from the start of a process to its death, where a node crashes while it recovers.
const RECOVERY: Duration = Duration::from_millis(400);
/// Pause between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// The way in which a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// SIGKILL, or a loss of power.
    Crash,
    /// A crash, and another one while the next process recovers.
    Twice,
    /// SIGSTOP for a moment, SIGCONT, then a crash.
    Frozen,
    /// SIGTERM: the node ends in order.
    Stop,
}

impl End {
    fn draw(random: &mut StdRng) -> Self {
        match random.random_range(0..10) {
            0 | 1 => Self::Twice,
            2 => Self::Frozen,
            3 => Self::Stop,
            _ => Self::Crash,
        }
    }
}

/// The outcome of a run.
pub struct Outcome {
    /// Number of cycles that were completed.
    pub cycles: u32,
    /// Number of cycles with each kind of end.
    pub ends: [(&'static str, u32); 4],
    /// Result of the load.
    pub report: Report,
    /// The rules that must hold.
    pub oracles: Vec<Oracle>,
}

impl Outcome {
    /// Return true if every rule held.
    pub fn holds(&self) -> bool {
        self.oracles.iter().all(|(_, oracle)| oracle.is_ok())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends: Vec<String> = self.ends.iter().map(|(name, times)| format!("{times} {name}")).collect();
        writeln!(f, "{} cycles: {}", self.cycles, ends.join(", "))?;
        for (name, oracle) in &self.oracles {
            match oracle {
                Ok(said) => writeln!(f, "holds   {name}: {said}")?,
                Err(why) => writeln!(f, "BROKEN  {name}: {why}")?,
            }
        }
        write!(f, "{}", self.report)
    }
}

/// Run the crash scenario.
///
/// # Errors
/// The run loses power and this machine mounts no images: nothing was run.
///
/// # Panics
/// If a node does not start, or the deploy before the run fails.
pub fn crash(settings: &Settings) -> Result<Outcome, Unavailable> {
    let mut run = Run::begin(settings)?;
    let mut done = 0;
    let mut told = Instant::now();
    while done < settings.cycles && run.failed.is_none() && !settings.stop.load(Ordering::Relaxed) {
        run.cycle();
        done += 1;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            let report = run.load.report();
            println!("{done} cycles, {} acknowledged writes, {} lost", report.acknowledged, report.lost);
        }
    }
    Ok(run.finish(done))
}

struct Run<'a> {
    settings: &'a Settings,
    random: StdRng,
    // Declared before `nodes`, so that clients stop before the nodes are killed.
    load: Load,
    nodes: Vec<Node>,
    disks: Disks,
    ends: [(&'static str, u32); 4],
    /// The first alert of a loss, with its cycle.
    failed: Option<String>,
}

impl<'a> Run<'a> {
    fn begin(settings: &'a Settings) -> Result<Self, Unavailable> {
        let mut disks = Disks::new(settings.power);
        let mut nodes = Vec::new();
        for number in 0..settings.nodes {
            let mut node = disks.node(number, &["--ring-size", &RING.to_string()])?;
            node.start();
            nodes.push(node);
        }
        for node in &nodes[1..] {
            node.join(&nodes[0]);
        }
        let file = disks.path().join("guest.wasm");
        std::fs::write(&file, component(settings.guest))
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let deployed = nodes[0].json(&["deploy".as_ref(), file.as_os_str()]);
        assert_eq!(deployed.code, 0, "{} was not deployed: {deployed:?}", settings.guest);
        let load = Load::new(settings.load.clone(), &nodes.iter().collect::<Vec<_>>());
        load.fill();
        load.phase("crashes");
        let random = StdRng::seed_from_u64(settings.seed ^ 0xc4a5);
        let ends =
            [("crash", 0), ("crash and a crash of the recovery", 0), ("freeze and crash", 0), ("stop", 0)];
        Ok(Self { settings, random, load, nodes, disks, ends, failed: None })
    }

    fn cycle(&mut self) {
        let end = End::draw(&mut self.random);
        self.ends[end as usize].1 += 1;
        let victim = self.random.random_range(0..self.nodes.len());
        self.load.go();
        let wanted = self.load.report().acknowledged + self.random.random_range(WRITES);
        until("writes are acknowledged", || (self.load.report().acknowledged >= wanted).then_some(()));
        // The moment of a crash is drawn and not awaited: it must be at no particular state of the node.
        thread::sleep(self.random.random_range(Duration::ZERO..LONGEST));

        self.load.freeze(&self.nodes[victim], true);
        match end {
            End::Stop => {
                let code = self.nodes[victim].stop();
                if code != Some(0) {
                    self.fail(format!("{} ended with {code:?} after SIGTERM", self.nodes[victim].name));
                }
            }
            End::Crash => self.disks.crash(&mut self.nodes[victim]),
            End::Frozen => {
                self.nodes[victim].pause();
                thread::sleep(self.random.random_range(Duration::ZERO..LONGEST));
                self.nodes[victim].resume();
                thread::sleep(self.random.random_range(Duration::ZERO..LONGEST));
                self.disks.crash(&mut self.nodes[victim]);
            }
            End::Twice => {
                self.disks.crash(&mut self.nodes[victim]);
                self.nodes[victim].begin_start();
                thread::sleep(self.random.random_range(Duration::ZERO..RECOVERY));
                self.disks.crash(&mut self.nodes[victim]);
            }
        }
        self.load.end_requests_to(&self.nodes[victim]);
        self.nodes[victim].start();
        self.load.freeze(&self.nodes[victim], false);
        self.load.read_back();
        self.check_alerts(victim);
    }

    /// Check that the restarted node reports no loss: it has none.
    fn check_alerts(&mut self, victim: usize) {
        let status = self.nodes[victim].json(&["status"]).json();
        let alerts = status["alerts"].as_array().cloned().unwrap_or_default();
        let loss = alerts
            .iter()
            .filter_map(|alert| alert.as_str())
            .find(|alert| ["possible-loss", "items-set-aside"].iter().any(|kind| alert.starts_with(kind)));
        if let Some(loss) = loss {
            self.fail(format!("{}: {loss}", self.nodes[victim].name));
        }
    }

    fn fail(&mut self, why: String) {
        let cycle: u32 = self.ends.iter().map(|(_, times)| times).sum();
        self.failed.get_or_insert(format!("cycle {cycle}: {why}"));
    }

    fn finish(mut self, cycles: u32) -> Outcome {
        let report = self.load.verify();
        let complete = match self.failed.take() {
            Some(why) => Err(why),
            None if cycles < self.settings.cycles => Err(format!("interrupted after {cycles}")),
            None => Ok(format!("{cycles} cycles")),
        };
        let sound = if report.is_sound() {
            Ok(format!("{} keys after each crash", self.settings.load.keys))
        } else {
            Err("see below".to_owned())
        };
        let oracles = vec![
            ("every node came back without an alert of a loss", complete),
            ("no acknowledged write lost, none revived, every request answered", sound),
        ];
        let outcome = Outcome { cycles, ends: self.ends, report, oracles };
        if self.settings.keep && !outcome.holds() {
            self.disks.keep_directory();
        }
        outcome
    }
}
