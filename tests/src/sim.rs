//! The simulation from the command line: many seeds, one seed's schedule, the table of what large
//! clusters cost.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use annulus_sim::scale::{Row, scale};
use annulus_sim::truth::Counts;
use annulus_sim::{Mutant, Report, Settings, run};

/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// How many lines of a broken run are shown.
const LAST: usize = 60;

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Runs that broke a rule, by seed.
    pub broken: Vec<Report>,
    /// Of all runs.
    pub counts: Counts,
    /// How many seeds were run.
    pub seeds: u64,
    /// How long they were, in virtual time.
    pub lasted: Duration,
    /// How long they took.
    pub took: Duration,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in &self.broken {
            if let Some(broken) = &report.broken {
                writeln!(f, "seed {}: {broken}", report.seed)?;
            }
        }
        if let Some(first) = self.broken.first() {
            writeln!(f, "\nthe end of seed {} (`sim --replay {0}` shows all of it):", first.seed)?;
            let from = first.lines.len().saturating_sub(LAST);
            first.lines[from..].iter().try_for_each(|line| writeln!(f, "{line}"))?;
        }
        writeln!(
            f,
            "{} seeds, {} broke a rule; {} requests, {} of them with an unknown outcome; {:.0} s of their time in \
             {:.1} s",
            self.seeds,
            self.broken.len(),
            self.counts.requests,
            self.counts.unknown,
            self.lasted.as_secs_f64(),
            self.took.as_secs_f64()
        )?;
        let Counts { acknowledged, lost, resurrected, unanswered, .. } = self.counts;
        write!(
            f,
            "checked {acknowledged} acknowledged writes: lost {lost}, resurrected {resurrected}, \
             unanswered {unanswered}"
        )
    }
}

/// Runs seeds on all cores; goes on past those that break a rule. `show`: with every line of each.
pub fn many(from: u64, seeds: u64, mutant: Option<Mutant>, show: bool, stop: &AtomicBool) -> Verdict {
    let settings = Settings { mutant, ..Settings::default() };
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let verdict = Mutex::new(Verdict::default());
    let began = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            let report = run(from + seed, &settings);
            done.fetch_add(1, Ordering::Relaxed);
            if show {
                report.lines.iter().for_each(|line| println!("{line}"));
            }
            let mut verdict = verdict.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            verdict.seeds += 1;
            verdict.lasted += report.lasted;
            verdict.counts.add(&report.counts);
            if report.broken.is_some() {
                verdict.broken.push(report);
            }
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut said = Instant::now();
        while running.iter().any(|worker| !worker.is_finished()) {
            // Only what is said waits here.
            std::thread::sleep(Duration::from_millis(20));
            if said.elapsed() > PROGRESS {
                said = Instant::now();
                let done = done.load(Ordering::Relaxed);
                println!("{done} of {seeds} seeds in {:.0} s", began.elapsed().as_secs_f64());
            }
        }
    });
    let mut verdict = verdict.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    verdict.broken.sort_by_key(|report| report.seed);
    verdict.took = began.elapsed();
    verdict
}

/// The table of simulated scale, line by line as they come.
///
/// # Errors
/// The cluster that did not come to rest.
pub fn table(sizes: &[usize], ring: u32, mut line: impl FnMut(&str)) -> Result<(), String> {
    line(
        "| nodes | at rest: messages/s | bytes/s | of these liveness | joining: messages/s | bytes/s | busiest node bytes/s | partitions moved | log entries | converged after |",
    );
    line("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for nodes in sizes {
        let Row { rest, join, moved, converged, entries, .. } = scale(*nodes, ring)?;
        let mut row = String::new();
        let _ = write!(
            row,
            "| {nodes} | {:.1} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {moved} | {entries} | {converged:.1} s |",
            rest.messages, rest.bytes, rest.liveness, join.messages, join.bytes, join.busiest
        );
        line(&row);
    }
    Ok(())
}
