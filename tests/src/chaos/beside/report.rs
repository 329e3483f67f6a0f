//! What one module's clients saw.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::Kind;
use crate::load;

/// Examples that are kept of what was wrong, and of failures by each code; all of it is counted.
const EXAMPLES: usize = 200;
const FAILURES_OF_A_CODE: u64 = 5;

/// What one module's clients saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What the module is called.
    pub module: String,
    /// Requests answered, well or badly.
    pub requests: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Of those, how many were found not to be there though nobody told of it.
    pub lost: u64,
    /// Acknowledged deletes whose key came back.
    pub resurrected: u64,
    /// Requests without any answer in their time, and keys that could not be read at the end.
    pub unanswered: u64,
    /// Requests without an answer because the process that was asked was killed or stopped.
    pub frozen: u64,
    /// Traps that were answered with the loss of items.
    pub told: u64,
    /// Traps that were answered as such, where nothing was kept.
    pub trapped: u64,
    /// Failed requests by code, without those that were asked for.
    pub codes: BTreeMap<String, u64>,
    /// Answers that may not be, whatever was held.
    pub wrong: u64,
    /// The first of those, and of what was lost or came back, with their times.
    pub examples: Vec<String>,
    /// The first failures by each code, with their times.
    pub failures: Vec<String>,
    /// The longest that a request took.
    pub longest: Duration,
    pub(super) began: Option<Instant>,
}

impl Report {
    pub(super) fn new(kind: Kind, began: Instant) -> Self {
        Self { module: kind.module().to_owned(), began: Some(began), ..Self::default() }
    }

    /// The same of the module under load.
    pub(in crate::chaos) fn of(report: &load::Report) -> Self {
        let longest = report.phases.iter().map(load::Phase::longest).max().unwrap_or_default();
        Self {
            module: load::MODULE.to_owned(),
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

    /// Requests that were answered by a fault of the host.
    pub fn internal(&self) -> u64 {
        self.codes.iter().filter(|(code, _)| code.contains("internal")).map(|(_, count)| count).sum()
    }

    /// What must hold of a module, whatever befalls the others.
    ///
    /// # Errors
    /// What does not.
    pub fn sound(&self) -> Result<(), String> {
        // Its own trap is the only one that a module may be told of.
        let foreign = ["items-lost", "trapped"].iter().filter_map(|code| self.codes.get(*code)).sum();
        let faults = [
            ("lost", self.lost),
            ("resurrected", self.resurrected),
            ("unanswered", self.unanswered),
            ("internal", self.internal()),
            ("wrong", self.wrong),
            ("told of a trap that nobody asked for", foreign),
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
            write!(f, "; traps {}, of which {} took items", self.told + self.trapped, self.told)?;
        }
        write!(f, "; longest {:.1} s; failed {:?}", self.longest.as_secs_f64(), self.codes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_sound_unless_something_of_it_is_not() {
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
