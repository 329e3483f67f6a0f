//! A run that breaks a rule, saved as a file with everything that is needed to replay it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::rule::Rule;
use crate::{Report, Settings, run};

/// The format version of these files. It changes when the meaning of their contents changes.
pub const FORMAT: u32 = 1;

/// A saved run that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Always [`FORMAT`].
    format: u32,
    /// The version of the program that wrote the file.
    pub program: String,
    /// The seed of all random numbers.
    pub seed: u64,
    /// The settings, including the schedule and the nature that the seed had drawn.
    pub settings: Settings,
    /// The rule that broke.
    pub rule: Rule,
    /// The details of the violation.
    pub what: String,
    /// A hash of everything that happened; a replay with the same hash is the same history.
    pub trace: u64,
}

/// The error of reading a saved run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The file cannot be read or parsed.
    Unreadable(String),
    /// The file has another format version than [`FORMAT`].
    OtherFormat(u64),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "not a saved run: {why}"),
            Self::OtherFormat(format) => {
                write!(f, "the file has format {format}; this program reads only format {FORMAT}")
            }
        }
    }
}

/// The result of a replay, compared with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// The same rule broke, by the same history.
    Same,
    /// The same rule broke, by another history: the program has changed since.
    Otherwise,
    /// Another rule broke.
    OtherRule,
    /// No rule broke.
    Holds,
}

impl Saved {
    /// Create the file of a run from its settings and report. `None` if no rule was broken.
    pub fn of(settings: &Settings, report: &Report) -> Option<Self> {
        let broken = report.broken.as_ref()?;
        Some(Self {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            seed: report.seed,
            settings: report.settings(settings),
            rule: broken.rule,
            what: broken.what.clone(),
            trace: report.trace,
        })
    }

    /// Write the file `sim-seed-N.json` into a directory, which is created if it is missing, and return its path.
    ///
    /// # Errors
    /// Returns the error of the file system.
    pub fn write(&self, dir: &Path) -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(format!("sim-seed-{}.json", self.seed));
        std::fs::write(&path, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(path)
    }

    /// Read a saved run.
    ///
    /// # Errors
    /// Returns [`Unusable`] if the file cannot be read, is malformed, or has another format version.
    pub fn read(path: &Path) -> Result<Self, Unusable> {
        let text = std::fs::read_to_string(path).map_err(|error| Unusable::Unreadable(error.to_string()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, Unusable> {
        /// The part that files of all format versions have.
        #[derive(Deserialize)]
        struct Any {
            format: u64,
        }
        let unreadable = |error: serde_json::Error| Unusable::Unreadable(error.to_string());
        let Any { format } = serde_json::from_str(text).map_err(unreadable)?;
        if format != u64::from(FORMAT) {
            return Err(Unusable::OtherFormat(format));
        }
        serde_json::from_str(text).map_err(unreadable)
    }

    /// Replay the run and compare the result.
    pub fn run(&self) -> (Report, Replayed) {
        let report = run(self.seed, &self.settings);
        let replayed = match &report.broken {
            None => Replayed::Holds,
            Some(broken) if broken.rule != self.rule => Replayed::OtherRule,
            Some(_) if report.trace != self.trace => Replayed::Otherwise,
            Some(_) => Replayed::Same,
        };
        (report, replayed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::schedule::{self, Shape};

    fn saved() -> Saved {
        let shape = Shape { nodes: 3, most: 5, modules: 3, older: 1 };
        let mut random = SmallRng::seed_from_u64(5);
        let schedule = schedule::draw(&mut random, shape, std::time::Duration::from_secs(90));
        let mutant = Some(crate::Mutant::ForgetSeal);
        let settings = Settings { schedule: Some(schedule), nodes: Some(3), mutant, ..Settings::default() };
        let (program, what) = ("0.1.0".to_owned(), "two of them".to_owned());
        let rule = Rule::OneTruth;
        Saved { format: FORMAT, program, seed: u64::MAX, settings, rule, what, trace: u64::MAX - 1 }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = saved().write(&dir.path().join("new")).unwrap();
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("sim-seed-{}.json", u64::MAX));
        assert_eq!(Saved::read(&path).unwrap(), saved());
    }

    #[test]
    fn an_unusable_file_is_refused_with_the_reason() {
        let mut value = serde_json::to_value(saved()).unwrap();
        value["format"] = 7.into();
        // The rest of a file with another format is not read.
        value["settings"] = "others".into();
        assert_eq!(Saved::parse(&value.to_string()), Err(Unusable::OtherFormat(7)));
        // A file from before natures existed has none of their properties.
        let mut value = serde_json::to_value(saved()).unwrap();
        value["settings"].as_object_mut().unwrap().remove("nature");
        assert_eq!(Saved::parse(&value.to_string()).unwrap().settings.nature, Some(crate::Nature::default()));
        let mut value = serde_json::to_value(saved()).unwrap();
        value["settings"]["more"] = 1.into();
        let error = Saved::parse(&value.to_string()).unwrap_err().to_string();
        assert!(error.contains("unknown field `more`"), "{error}");
        for text in ["", "29", "{}", "{\"format\":1}"] {
            assert!(matches!(Saved::parse(text), Err(Unusable::Unreadable(_))), "{text}");
        }
        let missing = Saved::read(Path::new("/nowhere/sim-seed-1.json"));
        assert!(matches!(missing, Err(Unusable::Unreadable(_))));
    }
}
