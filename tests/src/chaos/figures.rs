//! The outcome of a chaos run and its text form.

use std::fmt;
use std::time::{Duration, Instant};

/// One change or fault.
#[derive(Clone, Debug)]
pub struct Event {
    /// The change or fault and its node.
    pub what: String,
    /// Start time.
    pub began: Instant,
    /// End time: the verb was answered, or the fault was healed.
    pub ended: Option<Instant>,
    /// Time at which the cluster was first seen settled after `ended`.
    pub settled: Option<Instant>,
    /// Additional information for the table; may be empty.
    pub note: String,
}

/// A rule that must hold: its name, and a summary if it held or the reason if it did not.
pub type Oracle = (&'static str, Result<String, String>);

/// The outcome of a run, with the results of its clients.
pub struct Outcome<R> {
    /// Start time.
    pub began: Instant,
    /// All changes and faults, in the order of their start.
    pub events: Vec<Event>,
    /// The rules that must hold.
    pub oracles: Vec<Oracle>,
    /// Results of the clients.
    pub results: R,
}

impl<R> Outcome<R> {
    /// Return true if every rule held.
    pub fn holds(&self) -> bool {
        self.oracles.iter().all(|(_, oracle)| oracle.is_ok())
    }
}

impl<R: fmt::Display> fmt::Display for Outcome<R> {
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
            "settled in: time from the end until every node shows the same balanced ring and no partition moves\n"
        )?;
        for (name, oracle) in &self.oracles {
            match oracle {
                Ok(said) => writeln!(f, "holds   {name}: {said}")?,
                Err(why) => writeln!(f, "BROKEN  {name}: {why}")?,
            }
        }
        write!(f, "\n{}", self.results)
    }
}
