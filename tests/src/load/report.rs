//! The results of a load.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Number of examples kept of contradictions, and of failures for each code. Everything is counted.
const EXAMPLES: usize = 2_000;
/// Number of failures shown for each code.
const SHOWN: usize = 5;

/// A failed request.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Time of sending.
    pub sent: Instant,
    /// Time until the answer.
    pub took: Duration,
    /// The error's code.
    pub code: String,
    /// The error's message.
    pub message: String,
    /// The partition of its key.
    pub partition: u16,
    /// The command and the key.
    pub what: String,
}

/// A phase of a load.
#[derive(Clone)]
pub struct Phase {
    /// The event during the phase.
    pub name: String,
    /// Start time.
    pub began: Instant,
    /// Number of requests that were answered, with success or an error.
    pub requests: u64,
    /// Number of requests that failed.
    pub failed: u64,
    /// Times until the answer, in microseconds.
    pub latency: Histogram<u64>,
    /// Longest time until an answer, by client.
    pub longest: Vec<Duration>,
}

impl Phase {
    fn new(name: &str, clients: u32) -> Self {
        Self {
            name: name.to_owned(),
            began: Instant::now(),
            requests: 0,
            failed: 0,
            // The histogram has three significant digits and no upper limit.
            latency: Histogram::new(3).unwrap_or_else(|error| panic!("a histogram: {error}")),
            longest: vec![Duration::ZERO; clients as usize],
        }
    }

    /// Return the longest time until an answer of any client.
    pub fn longest(&self) -> Duration {
        self.longest.iter().max().copied().unwrap_or_default()
    }

    /// Return a quantile of the latency; `quantile` is from 0 to 1.
    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.latency.value_at_quantile(quantile))
    }
}

/// The results of a load so far.
#[derive(Clone)]
pub struct Report {
    clients: u32,
    /// All phases, in order.
    pub phases: Vec<Phase>,
    /// Number of acknowledged writes.
    pub acknowledged: u64,
    /// Number of acknowledged writes that were later missing.
    pub lost: u64,
    /// Number of acknowledged deletes whose key came back.
    pub resurrected: u64,
    /// Number of requests without an answer before their deadline, and of keys not readable at the end.
    pub unanswered: u64,
    /// Number of requests without an answer because the asked process was killed or frozen.
    pub frozen: u64,
    /// Contradictions between replies and the model.
    pub wrong: Vec<String>,
    /// Number of failed requests by code.
    pub codes: BTreeMap<String, u64>,
    /// The first failures of each code.
    pub failures: Vec<Failed>,
    /// Number of requests for `keys`, answered or not.
    pub coverages: u64,
    /// Number of those with a reply from every partition.
    pub complete: u64,
    /// Partitions missing from replies of `keys`, one entry for each occurrence.
    pub missing: Vec<u16>,
    /// Contradictions between replies of `keys` and the model.
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
        // This fails only above the histogram's range, which is hours.
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
        // The limit is per code, so that a frequent code does not displace a rare one.
        if *count <= EXAMPLES as u64 {
            self.failures.push(failed);
        }
    }

    pub(super) fn contradicted(&mut self, what: String) {
        if self.wrong.len() < EXAMPLES {
            self.wrong.push(what);
        }
    }

    /// Return the number of failed requests of all phases.
    pub fn failed_requests(&self) -> u64 {
        self.codes.values().sum()
    }

    /// Return the number of answered requests of all phases.
    pub fn requests(&self) -> u64 {
        self.phases.iter().map(|phase| phase.requests).sum()
    }

    /// Return the phase with this name.
    ///
    /// # Panics
    /// If no phase has this name.
    pub fn phase(&self, name: &str) -> &Phase {
        let found = self.phases.iter().find(|phase| phase.name == name);
        found.unwrap_or_else(|| panic!("no phase {name}"))
    }

    /// Return true if no acknowledged write was lost, no deleted key came back, every request was answered and
    /// every reply of `keys` was right.
    pub fn is_sound(&self) -> bool {
        self.lost == 0 && self.resurrected == 0 && self.unanswered == 0 && self.coverage_wrong.is_empty()
    }

    /// Assert that the load [`is_sound`](Self::is_sound).
    ///
    /// # Panics
    /// If it is not.
    pub fn assert_sound(&self) {
        assert!(self.is_sound(), "{self}");
    }

    /// Assert that the load is sound and that no request failed, including those for `keys`.
    ///
    /// # Panics
    /// If the load is not sound or a request failed.
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
            writeln!(f, "not answered because the asked process was killed or stopped: {}", self.frozen)?;
        }
        write!(
            f,
            "checked {} acknowledged writes: lost {}, resurrected {}, unanswered {}",
            self.acknowledged, self.lost, self.resurrected, self.unanswered
        )
    }
}
