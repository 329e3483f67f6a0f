//! The history of one seed, with all its events.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use annulus::cli::{CliError, Output};
use annulus_sim::saved::{Replayed, Saved};
use annulus_sim::{Mutant, Report, Settings, run};
use serde_json::Value;

use super::Verdict;

/// The history to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The history that a seed generates.
    Seed(u64),
    /// A saved, shrunk history.
    File(PathBuf),
}

impl FromStr for Which {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_| Self::File(text.into()), Self::Seed))
    }
}

/// Replay a history and show it. Return true if no rule is broken.
///
/// # Errors
/// If the file cannot be read, or the output cannot be written.
pub fn replay(which: &Which, mutant: Option<Mutant>, output: &Output) -> Result<bool, CliError> {
    let began = Instant::now();
    let (report, file) = match which {
        Which::Seed(seed) => (run(*seed, &Settings { mutant, ..Settings::default() }), None),
        Which::File(path) => {
            let unusable = |why: &dyn fmt::Display| CliError::Other(format!("{}: {why}", path.display()));
            if mutant.is_some() {
                return Err(unusable(&"a file already names its mutant; leave `--mutant` out"));
            }
            let saved = Saved::read(path).map_err(|error| unusable(&error))?;
            let (report, replayed) = saved.run();
            (report, Some((saved, replayed)))
        }
    };
    let verdict = Verdict::of_one(&report, began.elapsed());
    let shown = Replay { report: &report, file, verdict };
    output.show(&shown.to_json(), || shown.to_string())?;
    Ok(report.broken.is_none())
}

struct Replay<'a> {
    report: &'a Report,
    file: Option<(Saved, Replayed)>,
    verdict: Verdict,
}

impl Replay<'_> {
    fn to_json(&self) -> Value {
        let mut value = self.verdict.to_json();
        value["lines"] = self.report.lines.as_slice().into();
        value["schedule"] = serde_json::to_value(&self.report.schedule).unwrap_or_default();
        if let Some((saved, replayed)) = &self.file {
            value["replayed"] = remark(saved, *replayed).into();
        }
        value
    }
}

impl fmt::Display for Replay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        if let Some(broken) = &self.report.broken {
            writeln!(f, "seed {}: {broken}", self.report.seed)?;
        }
        if let Some((saved, replayed)) = &self.file {
            writeln!(f, "{}", remark(saved, *replayed))?;
        }
        self.verdict.figures(f)
    }
}

/// Compare the replayed history with the saved one, in words.
fn remark(saved: &Saved, replayed: Replayed) -> String {
    let Saved { program, rule, what, .. } = saved;
    match replayed {
        Replayed::Same => "the same rule is broken by the same history".to_owned(),
        Replayed::Otherwise => {
            format!(
                "the same rule is broken, but by another history than in the file, which version {program} wrote"
            )
        }
        Replayed::OtherRule => {
            format!("another rule is broken than in the file, which version {program} wrote: {rule}: {what}")
        }
        Replayed::Holds => {
            format!("no rule is broken now; in the file, which version {program} wrote: {rule}: {what}")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_number_is_a_seed_and_anything_else_a_path() {
        assert_eq!("29".parse(), Ok(Which::Seed(29)));
        assert_eq!("./29".parse(), Ok(Which::File("./29".into())));
        assert_eq!("sim-seed-29.json".parse(), Ok(Which::File("sim-seed-29.json".into())));
    }
}
