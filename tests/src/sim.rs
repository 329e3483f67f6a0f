//! The command-line side of the simulation: many seeds, the history of one seed, and the table of costs of
//! large clusters.

mod replay;
mod verdict;

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use annulus::cli::Output;
use annulus_sim::saved::Saved;
use annulus_sim::scale::{Row, scale};
use annulus_sim::shrink::{Bounds, shrink};
use annulus_sim::{Mutant, Settings, run};

pub use replay::{Which, replay};
pub use verdict::{Short, Verdict};

/// Time between two lines of progress if stderr is not a terminal.
const PROGRESS: Duration = Duration::from_secs(5);

/// Number of broken seeds to shrink.
const SHRUNK: usize = 3;

/// Run seeds on all cores until all are done or `stop` is set. Seeds that break a rule do not end the run.
pub fn many(from: u64, seeds: u64, mutant: Option<Mutant>, output: &Output, stop: &AtomicBool) -> Verdict {
    let settings = Settings { mutant, ..Settings::default() };
    let next = AtomicU64::new(0);
    let verdict = Mutex::new(Verdict { asked: seeds, ..Verdict::default() });
    let began = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            let report = run(from + seed, &settings);
            lock(&verdict).add(report);
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut shown = Shown::new(output);
        while running.iter().any(|worker| !worker.is_finished()) {
            // Only the progress display waits here.
            std::thread::sleep(Duration::from_millis(20));
            shown.say(|| {
                let verdict = lock(&verdict);
                let (took, done) = (began.elapsed().as_secs_f64(), verdict.seeds);
                let what = format!(
                    "{} broken, {:.1} seeds/s, {:.0} virtual s/s",
                    verdict.broken.len(),
                    done as f64 / took,
                    verdict.lasted.as_secs_f64() / took
                );
                (what, done, seeds)
            });
        }
    });
    let mut verdict = verdict.into_inner().unwrap_or_else(PoisonError::into_inner);
    verdict.broken.sort_by_key(|report| report.seed);
    verdict.took = began.elapsed();
    verdict
}

/// Shrink the first broken seeds of a verdict, and write each result to a file in `out`.
pub fn shrink_first(
    verdict: &mut Verdict,
    mutant: Option<Mutant>,
    out: &Path,
    output: &Output,
    stop: &AtomicBool,
) {
    let settings = Settings { mutant, ..Settings::default() };
    for report in verdict.broken.iter().take(SHRUNK) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let shown = Mutex::new(Shown::new(output));
        let tell = |runs: usize, acts: usize| {
            let what = format!("seed {} is shrunk: {acts} acts after {runs} runs", report.seed);
            lock(&shown).say(|| (what, 0, 0));
        };
        let Some(shrunk) = shrink(&settings, report, Bounds::default(), stop, &tell) else { continue };
        let file = Saved::of(&shrunk.settings, &shrunk.report).map(|saved| {
            saved.write(out).map_err(|error| format!("it cannot be kept in {}: {error}", out.display()))
        });
        verdict.shrunk.push(Short { shrunk, file: file.unwrap_or_else(|| Err("no rule broke".to_owned())) });
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A progress display: continuous on a terminal, otherwise a line every [`PROGRESS`].
struct Shown<'a> {
    output: &'a Output,
    progress: Option<annulus::cli::Progress>,
    said: Instant,
}

impl<'a> Shown<'a> {
    fn new(output: &'a Output) -> Self {
        let progress = std::io::stderr().is_terminal().then(|| output.progress());
        Self { output, progress, said: Instant::now() }
    }

    /// Show progress if it is due. `what` returns the text, the work done and the total, which is 0 if unknown.
    fn say(&mut self, what: impl FnOnce() -> (String, u64, u64)) {
        if let Some(progress) = &mut self.progress {
            let (what, done, total) = what();
            progress.set(&what, done, total);
        } else if self.said.elapsed() > PROGRESS {
            self.said = Instant::now();
            let (what, done, total) = what();
            let far = if total > 0 { format!("{done} of {total} seeds: ") } else { String::new() };
            self.output.note(&format!("{far}{what}"));
        }
    }
}

/// Measure clusters of these sizes and pass the lines of a Markdown table to `line`, each when it is ready.
///
/// # Errors
/// If a cluster does not settle.
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
