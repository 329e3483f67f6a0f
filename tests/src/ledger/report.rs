//! The results of a crowd, for each module.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::account::Totals;

/// Limits on the kept examples of wrong answers, and of failures for each code. Everything is counted.
const EXAMPLES: usize = 100;
const FAILURES_OF_A_CODE: u64 = 5;

/// The results of the clients of one module.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The module's name.
    pub module: String,
    /// Number of keys.
    pub keys: usize,
    /// Number of requests that were answered, with success or an error.
    pub requests: u64,
    /// Number of acknowledged writes.
    pub acknowledged: u64,
    /// Number of writes that were refused: the error said `not-applied`.
    pub refused: u64,
    /// Number of writes whose outcome no client knows.
    pub unknown: u64,
    /// Number of acknowledged writes that a later read did not see.
    pub missed: u64,
    /// Number of acknowledged writes that are missing after the end of the load.
    pub lost: u64,
    /// Number of writes that were found, and had been refused or never made.
    pub phantom: u64,
    /// Number of requests without an answer before their deadline, and of keys not readable at the end.
    pub unanswered: u64,
    /// Number of requests without an answer because the asked process was killed or frozen.
    pub frozen: u64,
    /// Number of replies that do not have the form of one.
    pub malformed: u64,
    /// Number of failed requests by code.
    pub codes: BTreeMap<String, u64>,
    /// The first wrong answers, with their times.
    pub examples: Vec<String>,
    /// The first failures of each code, with their times.
    pub failures: Vec<String>,
    /// Longest time of a request.
    pub longest: Duration,
}

impl Report {
    pub(super) fn new(module: &str) -> Self {
        Self { module: module.to_owned(), ..Self::default() }
    }

    pub(super) fn with(self, totals: Totals) -> Self {
        let Totals { keys, acknowledged, refused, unknown, missed, lost, phantom } = totals;
        Self { keys, acknowledged, refused, unknown, missed, lost, phantom, ..self }
    }

    pub(super) fn example(&mut self, at: Duration, what: &str) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(line(at, what));
        }
    }

    pub(super) fn failure(&mut self, at: Duration, code: &str, what: &str) {
        let count = self.codes.entry(code.to_owned()).or_default();
        *count += 1;
        if *count <= FAILURES_OF_A_CODE {
            self.failures.push(line(at, what));
        }
    }

    /// Return true if nothing that was acknowledged is lost or was missed by a read.
    pub fn keeps(&self) -> bool {
        self.lost == 0 && self.missed == 0
    }

    /// Check the rules that hold for a module: nothing lost, no phantom, every request answered.
    ///
    /// # Errors
    /// The counts of the rules that do not hold.
    pub fn sound(&self) -> Result<(), String> {
        let internal: u64 =
            self.codes.iter().filter(|(code, _)| code.contains("internal")).map(|(_, count)| count).sum();
        let faults = [
            ("lost", self.lost),
            ("missed by a read", self.missed),
            ("phantom", self.phantom),
            ("unanswered", self.unanswered),
            ("malformed", self.malformed),
            ("internal", internal),
            ("nothing acknowledged", u64::from(self.acknowledged == 0)),
        ];
        let faults: Vec<String> =
            faults.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{what} {n}")).collect();
        if faults.is_empty() { Ok(()) } else { Err(format!("{}: {}", self.module, faults.join(", "))) }
    }
}

fn line(at: Duration, what: &str) -> String {
    format!("sent at {:.1} s: {what}", at.as_secs_f64())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for example in self.examples.iter().take(20) {
            writeln!(f, "WRONG  module {}: {example}", self.module)?;
        }
        for failure in &self.failures {
            writeln!(f, "failed module {}: {failure}", self.module)?;
        }
        write!(
            f,
            "module {:<8} {} keys, {} requests, writes: {} acknowledged, {} unknown, {} refused; lost {}, missed by a \
             read {}, phantom {}, unanswered {}; of killed or frozen processes {}; longest {:.1} s; failed {:?}",
            self.module,
            self.keys,
            self.requests,
            self.acknowledged,
            self.unknown,
            self.refused,
            self.lost,
            self.missed,
            self.phantom,
            self.unanswered,
            self.frozen,
            self.longest.as_secs_f64(),
            self.codes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_with_any_fault_is_not_sound() {
        let sound = Report { acknowledged: 1, unknown: 3, refused: 2, ..Report::new("kept") };
        assert_eq!(sound.sound(), Ok(()));
        let codes = [("internal".to_owned(), 1)].into();
        for broken in [
            Report { lost: 1, ..sound.clone() },
            Report { missed: 1, ..sound.clone() },
            Report { phantom: 1, ..sound.clone() },
            Report { unanswered: 1, ..sound.clone() },
            Report { malformed: 1, ..sound.clone() },
            Report { acknowledged: 0, ..sound.clone() },
            Report { codes, ..sound.clone() },
        ] {
            assert!(broken.sound().is_err(), "{broken}");
        }
    }
}
