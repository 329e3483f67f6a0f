//! What a load saw.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Examples that are kept of what went wrong; all of it is counted.
const EXAMPLES: usize = 2_000;
/// Failures of each code that are shown.
const SHOWN: usize = 5;

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// When it was sent.
    pub sent: Instant,
    /// How long until its answer.
    pub took: Duration,
    /// The error's code.
    pub code: String,
    /// What the error said.
    pub message: String,
    /// The partition of its key.
    pub partition: u16,
    /// Command and key.
    pub what: String,
}

/// A stretch of a load.
#[derive(Clone)]
pub struct Phase {
    /// What happened meanwhile.
    pub name: String,
    /// When it began.
    pub began: Instant,
    /// Requests answered, well or badly.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Until the answer, in microseconds.
    pub latency: Histogram<u64>,
    /// The longest of each client.
    pub longest: Vec<Duration>,
}

impl Phase {
    fn new(name: &str, clients: u32) -> Self {
        Self {
            name: name.to_owned(),
            began: Instant::now(),
            requests: 0,
            failed: 0,
            // Three digits suffice, up to whatever comes.
            latency: Histogram::new(3).unwrap_or_else(|error| panic!("a histogram: {error}")),
            longest: vec![Duration::ZERO; clients as usize],
        }
    }

    /// The longest stall of any client.
    pub fn longest(&self) -> Duration {
        self.longest.iter().max().copied().unwrap_or_default()
    }

    /// A quantile of the latency.
    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.latency.value_at_quantile(quantile))
    }
}

/// What a load saw so far.
#[derive(Clone)]
pub struct Report {
    clients: u32,
    /// Its stretches, in order.
    pub phases: Vec<Phase>,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Of those, how many were found not to be there.
    pub lost: u64,
    /// Acknowledged deletes whose key came back.
    pub resurrected: u64,
    /// Requests without any answer in their time, and keys that could not be read at the end.
    pub unanswered: u64,
    /// Requests without an answer because the process that was asked was killed or stopped.
    pub frozen: u64,
    /// What contradicted the model.
    pub wrong: Vec<String>,
    /// Failed requests by code.
    pub codes: BTreeMap<String, u64>,
    /// The first of them by each code.
    pub failures: Vec<Failed>,
    /// Answers of `keys` that were checked.
    pub coverages: u64,
    /// Of those, how many came while the ring was pending or not: all that were complete.
    pub complete: u64,
    /// Partitions that were missing in one, each time.
    pub missing: Vec<u16>,
    /// How they contradicted the model.
    pub coverage_wrong: Vec<String>,
}

impl Report {
    pub(super) fn new(clients: u32) -> Self {
        Self {
            clients,
            phases: vec![Phase::new("start", clients)],
            acknowledged: 0,
            lost: 0,
            resurrected: 0,
            unanswered: 0,
            frozen: 0,
            wrong: Vec::new(),
            codes: BTreeMap::new(),
            failures: Vec::new(),
            coverages: 0,
            complete: 0,
            missing: Vec::new(),
            coverage_wrong: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, name: &str) {
        self.phases.push(Phase::new(name, self.clients));
    }

    pub(super) fn answered(&mut self, client: u32, took: Duration) {
        let Some(phase) = self.phases.last_mut() else { return };
        phase.requests += 1;
        // Beyond the histogram's range is hours away.
        let _ = phase.latency.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let longest = &mut phase.longest[client as usize];
        *longest = took.max(*longest);
    }

    pub(super) fn failed(&mut self, failed: Failed) {
        if let Some(phase) = self.phases.last_mut() {
            phase.failed += 1;
        }
        let count = self.codes.entry(failed.code.clone()).or_default();
        *count += 1;
        // Of each code: a rare one is not to go under.
        if *count <= EXAMPLES as u64 {
            self.failures.push(failed);
        }
    }

    pub(super) fn contradicted(&mut self, what: String) {
        if self.wrong.len() < EXAMPLES {
            self.wrong.push(what);
        }
    }

    /// Requests that failed, of all phases.
    pub fn failed_requests(&self) -> u64 {
        self.codes.values().sum()
    }

    /// Requests of all phases.
    pub fn requests(&self) -> u64 {
        self.phases.iter().map(|phase| phase.requests).sum()
    }

    /// The phase of this name.
    ///
    /// # Panics
    /// If there was none.
    pub fn phase(&self, name: &str) -> &Phase {
        let found = self.phases.iter().find(|phase| phase.name == name);
        found.unwrap_or_else(|| panic!("no phase {name}"))
    }

    /// Nothing acknowledged is lost, nothing deleted came back, everything was answered.
    pub fn is_sound(&self) -> bool {
        self.lost == 0 && self.resurrected == 0 && self.unanswered == 0 && self.coverage_wrong.is_empty()
    }

    /// # Panics
    /// Unless it is sound.
    pub fn assert_sound(&self) {
        assert!(self.is_sound(), "{self}");
    }

    /// # Panics
    /// Unless it is sound and no request failed, `keys` neither.
    pub fn assert_flawless(&self) {
        self.assert_sound();
        assert!(self.failed_requests() == 0 && self.complete == self.coverages, "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for wrong in self.wrong.iter().chain(&self.coverage_wrong).take(20) {
            writeln!(f, "WRONG  {wrong}")?;
        }
        let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
        for failed in &self.failures {
            let times = shown.entry(&failed.code).or_default();
            *times += 1;
            if *times > SHOWN {
                continue;
            }
            let (what, code, took) = (&failed.what, &failed.code, failed.took);
            writeln!(
                f,
                "failed {what} (partition {}) after {took:?}: {code}: {}",
                failed.partition, failed.message
            )?;
        }
        writeln!(
            f,
            "{:<36} {:>9} {:>7} {:>9} {:>9} {:>9} {:>10}",
            "phase", "requests", "failed", "p50", "p99", "p99.9", "stall"
        )?;
        for phase in &self.phases {
            let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| ms(phase.quantile(quantile)));
            let (name, requests, failed, stall) =
                (&phase.name, phase.requests, phase.failed, ms(phase.longest()));
            writeln!(f, "{name:<36} {requests:>9} {failed:>7} {p50:>9} {p99:>9} {p999:>9} {stall:>10}")?;
        }
        if !self.codes.is_empty() {
            writeln!(f, "failed requests: {:?}", self.codes)?;
        }
        writeln!(
            f,
            "answers of `keys`: {}, complete {}, wrong {}",
            self.coverages,
            self.complete,
            self.coverage_wrong.len()
        )?;
        if self.frozen > 0 {
            writeln!(
                f,
                "asked of a process that was killed or stopped, and so not answered: {}",
                self.frozen
            )?;
        }
        write!(
            f,
            "checked {} acknowledged writes: lost {}, resurrected {}, unanswered {}",
            self.acknowledged, self.lost, self.resurrected, self.unanswered
        )
    }
}
