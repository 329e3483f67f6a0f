//! The results of one module's clients.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::Kind;
use crate::load;

/// Limits on the kept examples of wrong answers, and of failures for each code. Everything is counted.
const EXAMPLES: usize = 200;
const FAILURES_OF_A_CODE: u64 = 5;

/// The results of one module's clients.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The module's name.
    pub module: String,
    /// Number of requests that were answered, with success or an error.
    pub requests: u64,
    /// Number of acknowledged writes.
    pub acknowledged: u64,
    /// Number of acknowledged writes that were later missing without a report of their loss.
    pub lost: u64,
    /// Number of acknowledged deletes whose key came back.
    pub resurrected: u64,
    /// Number of requests without an answer before their deadline, and of keys not readable at the end.
    pub unanswered: u64,
    /// Number of requests without an answer because the asked process was killed or frozen.
    pub frozen: u64,
    /// Number of traps answered with `items-lost`.
    pub told: u64,
    /// Number of traps answered with `trapped`, where the partition had no items to lose.
    pub trapped: u64,
    /// Number of failed requests by code, without the traps that were asked for.
    pub codes: BTreeMap<String, u64>,
    /// Number of answers that are wrong in any state.
    pub wrong: u64,
    /// The first wrong, lost and resurrected answers, with their times.
    pub examples: Vec<String>,
    /// The first failures of each code, with their times.
    pub failures: Vec<String>,
    /// Longest time of a request.
    pub longest: Duration,
    pub(super) began: Option<Instant>,
}

impl Report {
    pub(super) fn new(kind: Kind, began: Instant) -> Self {
        Self { module: kind.module().to_owned(), began: Some(began), ..Self::default() }
    }

    /// Build the report of the module under load from the load's own report.
    pub(in crate::chaos) fn of(report: &load::Report) -> Self {
        let longest = report.phases.iter().map(load::Phase::longest).max().unwrap_or_default();
        Self {
            module: super::MODULE.to_owned(),
            requests: report.requests(),
            acknowledged: report.acknowledged,
            lost: report.lost,
            resurrected: report.resurrected,
            unanswered: report.unanswered,
            frozen: report.frozen,
            codes: report.codes.clone(),
            wrong: report.coverage_wrong.len() as u64,
            longest,
            ..Self::default()
        }
    }

    pub(super) fn example(&mut self, sent: Instant, what: &str) {
        if self.examples.len() < EXAMPLES {
            let line = self.line(sent, what);
            self.examples.push(line);
        }
    }

    pub(super) fn failure(&mut self, sent: Instant, code: &str, what: &str) {
        let count = self.codes.entry(code.to_owned()).or_default();
        *count += 1;
        if *count <= FAILURES_OF_A_CODE {
            let line = self.line(sent, what);
            self.failures.push(line);
        }
    }

    fn line(&self, sent: Instant, what: &str) -> String {
        let at = self.began.map_or(Duration::ZERO, |began| sent.saturating_duration_since(began));
        format!("sent at {:.1} s: {what}", at.as_secs_f64())
    }

    /// Return the number of requests that failed with an internal error of the host.
    pub fn internal(&self) -> u64 {
        self.codes.iter().filter(|(code, _)| code.contains("internal")).map(|(_, count)| count).sum()
    }

    /// Check the rules that hold for a module, whatever happens to the others.
    ///
    /// # Errors
    /// The counts of the rules that do not hold.
    pub fn sound(&self) -> Result<(), String> {
        // A module may report the loss of items only to the command that asked for the trap.
        let foreign = ["items-lost", "trapped"].iter().filter_map(|code| self.codes.get(*code)).sum();
        let faults = [
            ("lost", self.lost),
            ("resurrected", self.resurrected),
            ("unanswered", self.unanswered),
            ("internal", self.internal()),
            ("wrong", self.wrong),
            ("reported a trap that no command asked for", foreign),
            ("nothing acknowledged", u64::from(self.acknowledged == 0)),
        ];
        let faults: Vec<String> =
            faults.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{what} {n}")).collect();
        if faults.is_empty() { Ok(()) } else { Err(format!("{}: {}", self.module, faults.join(", "))) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "module {:<6} {} requests, {} writes acknowledged: lost {}, resurrected {}, unanswered {}, internal {}",
            self.module,
            self.requests,
            self.acknowledged,
            self.lost,
            self.resurrected,
            self.unanswered,
            self.internal()
        )?;
        if self.told + self.trapped > 0 {
            write!(f, "; traps {}, of which {} lost items", self.told + self.trapped, self.told)?;
        }
        write!(f, "; longest {:.1} s; failed {:?}", self.longest.as_secs_f64(), self.codes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_with_any_fault_is_not_sound() {
        let sound = Report { acknowledged: 1, told: 3, ..Report::default() };
        assert_eq!(sound.sound(), Ok(()));
        let with = |code: &str| Report { codes: [(code.to_owned(), 1)].into(), ..sound.clone() };
        assert_eq!(with("overloaded").sound(), Ok(()));
        for code in ["internal", "keys: internal", "items-lost", "trapped"] {
            assert!(with(code).sound().is_err(), "{code}");
        }
        for broken in [
            Report { lost: 1, ..sound.clone() },
            Report { resurrected: 1, ..sound.clone() },
            Report { unanswered: 1, ..sound.clone() },
            Report { wrong: 1, ..sound.clone() },
            Report { acknowledged: 0, ..sound.clone() },
        ] {
            assert!(broken.sound().is_err(), "{broken}");
        }
    }
}
