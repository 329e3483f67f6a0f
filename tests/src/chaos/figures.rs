//! What came of a run.

use std::fmt;
use std::time::{Duration, Instant};

use super::beside;
use crate::load::Report;

/// Of each module, wrong answers that are shown.
const SHOWN: usize = 20;

/// One thing that was done to the cluster.
#[derive(Clone, Debug)]
pub struct Event {
    /// What, and to whom.
    pub what: String,
    /// When it began.
    pub began: Instant,
    /// When it was over: the verb was answered, or the fault healed.
    pub ended: Option<Instant>,
    /// When the cluster was first seen settled after that.
    pub settled: Option<Instant>,
    /// What there is to say of it.
    pub note: String,
}

/// What must hold, and why it does not where it does not.
pub type Oracle = (&'static str, Result<String, String>);

/// What came of a run.
pub struct Outcome {
    /// When it began.
    pub began: Instant,
    /// All that was done.
    pub events: Vec<Event>,
    /// What the load saw.
    pub report: Report,
    /// What the clients of the other modules saw.
    pub beside: Vec<beside::Report>,
    /// What must hold.
    pub oracles: Vec<Oracle>,
}

impl Outcome {
    /// Does everything hold?
    pub fn holds(&self) -> bool {
        self.oracles.iter().all(|(_, oracle)| oracle.is_ok())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        writeln!(f, "{:>8}  {:<36} {:>8} {:>10}  note", "at", "what", "took", "settled in")?;
        for event in &self.events {
            let at = seconds(event.began.duration_since(self.began));
            let took = event.ended.map_or("?".to_owned(), |end| seconds(end.duration_since(event.began)));
            let settled = match (event.ended, event.settled) {
                (Some(ended), Some(settled)) => seconds(settled.saturating_duration_since(ended)),
                _ => "never".to_owned(),
            };
            writeln!(f, "{at:>8}  {:<36} {took:>8} {settled:>10}  {}", event.what, event.note)?;
        }
        writeln!(
            f,
            "settled in: after its end, until every node says the same even ring and nothing moves\n"
        )?;
        for (name, oracle) in &self.oracles {
            match oracle {
                Ok(said) => writeln!(f, "holds   {name}: {said}")?,
                Err(why) => writeln!(f, "BROKEN  {name}: {why}")?,
            }
        }
        writeln!(f)?;
        for module in &self.beside {
            for line in module.examples.iter().take(SHOWN) {
                writeln!(f, "WRONG  module {}: {line}", module.module)?;
            }
            for line in &module.failures {
                writeln!(f, "failed module {}: {line}", module.module)?;
            }
        }
        writeln!(f, "{}", self.report)?;
        writeln!(f, "{}", beside::Report::of(&self.report))?;
        let lines: Vec<String> = self.beside.iter().map(ToString::to_string).collect();
        write!(f, "{}", lines.join("\n"))
    }
}
