//! A history as a file: all that it takes to run it again.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::rule::Rule;
use crate::{Report, Settings, run};

/// The format of these files. It changes with the meaning of what is in them.
pub const FORMAT: u32 = 1;

/// A history that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// [`FORMAT`].
    format: u32,
    /// The version of the program that wrote it.
    pub program: String,
    /// Of all random numbers.
    pub seed: u64,
    /// With the schedule.
    pub settings: Settings,
    /// What breaks.
    pub rule: Rule,
    /// How it did.
    pub what: String,
    /// A number that all of the history was in.
    pub trace: u64,
}

/// Why a file cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It cannot be read.
    Unreadable(String),
    /// It has another format.
    OtherFormat(u64),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "it is no history of a seed: {why}"),
            Self::OtherFormat(format) => {
                write!(f, "its format is {format}, and this program knows format {FORMAT} only")
            }
        }
    }
}

/// What a file came to when it was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// The same rule broke, by the same history.
    Same,
    /// The same rule broke, by another history: the program is another one.
    Otherwise,
    /// Another rule broke.
    OtherRule,
    /// No rule broke.
    Holds,
}

impl Saved {
    /// Of a report that broke a rule, with the settings that it was run with.
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

    /// Writes it into a directory, which is made if it is not there; answers where it is.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, dir: &Path) -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(format!("sim-seed-{}.json", self.seed));
        std::fs::write(&path, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(path)
    }

    /// Reads one.
    ///
    /// # Errors
    /// Says why it cannot be run.
    pub fn read(path: &Path) -> Result<Self, Unusable> {
        let text = std::fs::read_to_string(path).map_err(|error| Unusable::Unreadable(error.to_string()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, Unusable> {
        /// What files of all formats have.
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

    /// Runs it.
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
    fn what_cannot_be_run_is_refused_with_the_reason() {
        let mut value = serde_json::to_value(saved()).unwrap();
        value["format"] = 7.into();
        // Nothing else of another format is known.
        value["settings"] = "others".into();
        assert_eq!(Saved::parse(&value.to_string()), Err(Unusable::OtherFormat(7)));
        // What is older than a nature has none of it.
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
