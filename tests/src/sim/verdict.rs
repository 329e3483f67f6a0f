//! The result of many seeds, as text and as JSON.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use annulus_sim::Report;
use annulus_sim::shrink::Shrunk;
use annulus_sim::truth::Counts;
use serde_json::{Value, json};

/// Number of lines shown of a broken run.
const LAST: usize = 60;

/// Number of lines shown of a shrunk run.
const LAST_OF_SHORT: usize = 20;

/// The result of many seeds.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Reports of the runs that broke a rule, by seed.
    pub broken: Vec<Report>,
    /// Shrunk versions of the first broken runs.
    pub shrunk: Vec<Short>,
    /// Sums over all runs.
    pub counts: Counts,
    /// Number of seeds requested.
    pub asked: u64,
    /// Number of seeds run.
    pub seeds: u64,
    /// Virtual time of all runs together.
    pub lasted: Duration,
    /// Elapsed real time.
    pub took: Duration,
}

/// A shrunk seed.
#[derive(Debug)]
pub struct Short {
    /// The shrunk settings and their report.
    pub shrunk: Shrunk,
    /// File that holds them, or the reason why no file exists.
    pub file: Result<PathBuf, String>,
}

impl Verdict {
    /// Create the verdict of a single run.
    pub(super) fn of_one(report: &Report, took: Duration) -> Self {
        let mut verdict = Self { asked: 1, took, ..Self::default() };
        verdict.add(report.clone());
        verdict
    }

    pub(super) fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.lasted += report.lasted;
        self.counts.add(&report.counts);
        if report.broken.is_some() {
            self.broken.push(report);
        }
    }

    /// Return the verdict as one JSON document.
    pub fn to_json(&self) -> Value {
        let broken = self.broken.iter().filter_map(|report| {
            let broken = report.broken.as_ref()?;
            let short = self.shrunk.iter().find(|short| short.shrunk.report.seed == report.seed);
            Some(json!({
                "seed": report.seed,
                "rule": broken.rule,
                "what": broken.what,
                "shrunk": short.map(Short::to_json),
            }))
        });
        let Counts { requests, acknowledged, lost, resurrected, unanswered, unknown, refused } = self.counts;
        json!({
            "seeds": self.seeds,
            "asked": self.asked,
            "broken": broken.collect::<Vec<_>>(),
            "requests": requests,
            "unknown": unknown,
            "refused": refused,
            "acknowledged": acknowledged,
            "lost": lost,
            "resurrected": resurrected,
            "unanswered": unanswered,
            "virtual_seconds": self.lasted.as_secs_f64(),
            "seconds": self.took.as_secs_f64(),
        })
    }

    /// Write the last lines: the counts, and a note if the run ended early.
    pub(super) fn figures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.seeds < self.asked {
            writeln!(f, "ended early: {} seeds were requested", self.asked)?;
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

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in &self.broken {
            if let Some(broken) = &report.broken {
                writeln!(f, "seed {}: {broken}", report.seed)?;
            }
        }
        self.shrunk.iter().try_for_each(|short| writeln!(f, "\n{short}"))?;
        if let (true, Some(first)) = (self.shrunk.is_empty(), self.broken.first()) {
            writeln!(f, "\nthe end of seed {} (`sim --replay {0}` shows all of it):", first.seed)?;
            last(f, &first.lines, LAST)?;
        }
        self.figures(f)
    }
}

impl Short {
    fn to_json(&self) -> Value {
        let Shrunk { settings, report, before, runs, complete } = &self.shrunk;
        json!({
            "settings": settings,
            "what": report.broken.as_ref().map(|broken| &broken.what),
            "acts_before": before,
            "acts": report.schedule.len(),
            "runs": runs,
            "complete": complete,
            "file": self.file.as_ref().ok(),
            "no_file": self.file.as_ref().err(),
        })
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shrunk { settings, report, before, runs, complete } = &self.shrunk;
        let (seed, acts) = (report.seed, report.schedule.len());
        write!(f, "seed {seed}, shrunk from {before} acts to {acts} in {runs} runs")?;
        writeln!(f, "{}:", if *complete { "" } else { " (ended early: it may become shorter)" })?;
        for (at, act) in &report.schedule {
            writeln!(f, "  {at:?} {act}")?;
        }
        writeln!(f, "  with {} keys, for {:?}", settings.keys, settings.unrest)?;
        writeln!(f, "the end of it:")?;
        last(f, &report.lines, LAST_OF_SHORT)?;
        match &self.file {
            Ok(path) => writeln!(f, "`sim --replay {}` shows all of it", path.display()),
            Err(why) => writeln!(f, "{why}"),
        }
    }
}

/// Write the last `most` lines.
fn last(f: &mut fmt::Formatter<'_>, lines: &[String], most: usize) -> fmt::Result {
    let from = lines.len().saturating_sub(most);
    lines[from..].iter().try_for_each(|line| writeln!(f, "{line}"))
}
