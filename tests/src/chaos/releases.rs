//! Releases and rollbacks of all modules, made by an operator through one member after another: at drawn times
//! during the faults, and immediately when a node is killed and when it restarts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::change::Place;
use crate::harness::{Cluster, Node, verb};

/// `--timeout` of a release: the time for every node to run it.
const TIMEOUT: &str = "60s";
/// Longest time until the answer of a release: [`TIMEOUT`], plus time for a busy machine and an unresponsive
/// node.
const LIMIT: Duration = Duration::from_secs(90);
/// Number of components of each module; they differ only in their digests.
const VARIANTS: u8 = 3;
/// Error codes that the command line itself sets if the node dies or stops answering.
const SILENT: [&str; 3] = ["connection-lost", "unreachable", "failed"];
/// Error codes with which a node may refuse a release during faults and membership changes.
const HONEST: [&str; 7] = [
    "no-quorum",
    "not-ready",
    "not-allowed",
    "rolled-back",
    "deadline-exceeded",
    "overloaded",
    "shutting-down",
];

/// One release or rollback and its result.
#[derive(Clone, Debug)]
struct Wanted {
    /// The verb, the module and the node that was asked.
    what: String,
    /// Time until the answer.
    took: Duration,
    /// The version that runs, or the error's code and message.
    answer: Result<u64, (String, String)>,
}

/// A thread that makes releases until [`Self::end`].
pub(super) struct Releases {
    places: Arc<Mutex<Vec<Place>>>,
    now: Sender<()>,
    all: Arc<Mutex<Vec<Wanted>>>,
    operator: JoinHandle<()>,
}

/// A module that is released.
pub(super) struct Released {
    /// Its name.
    pub(super) name: &'static str,
    /// Its component.
    pub(super) component: Vec<u8>,
    /// Whether some releases change a setting, which the guest must have: `fail-after`.
    pub(super) settings: bool,
}

struct Operator {
    began: Instant,
    places: Arc<Mutex<Vec<Place>>>,
    /// The modules, in the order of a draw, and whether some of their releases change a setting.
    modules: Vec<(&'static str, bool)>,
    /// Components of each module.
    files: BTreeMap<&'static str, Vec<PathBuf>>,
    /// Index of the component deployed last, by module.
    last: BTreeMap<&'static str, u8>,
    random: StdRng,
    /// Modules with an earlier release to roll back to.
    released: Vec<&'static str>,
    all: Arc<Mutex<Vec<Wanted>>>,
}

impl Releases {
    /// Start the thread: one release about each `every`, of a module and through a node drawn from the seed.
    pub(super) fn begin(
        cluster: &Cluster,
        released: &[Released],
        seed: u64,
        every: Duration,
        began: Instant,
    ) -> Self {
        let file = |Released { name, component, .. }: &Released, number: u8| {
            // A custom section changes the digest and nothing else.
            let variant = [&component[..], &[0, 3, 1, b'v', number]].concat();
            cluster.keep(&format!("{name}-{number}.wasm"), &variant)
        };
        let files = released.iter().map(|of| (of.name, (0..VARIANTS).map(|n| file(of, n)).collect()));
        let (places, all) = (Arc::default(), Arc::default());
        let random = StdRng::seed_from_u64(seed ^ 0x4e1e);
        let operator = Operator {
            began,
            places: Arc::clone(&places),
            modules: released.iter().map(|of| (of.name, of.settings)).collect(),
            files: files.collect(),
            last: BTreeMap::new(),
            random,
            released: Vec::new(),
            all: Arc::clone(&all),
        };
        let (now, told) = channel();
        let operator = std::thread::spawn(move || operator.work(every, &told));
        Self { places, now, all, operator }
    }

    /// Send releases to these nodes from now on.
    pub(super) fn enter(&self, places: Vec<Place>) {
        *self.places.lock() = places;
    }

    /// Make the next release now.
    pub(super) fn now(&self) {
        // This fails only if the thread has panicked, which `end` reports.
        let _ = self.now.send(());
    }

    /// Stop making releases and wait for the one in progress.
    ///
    /// # Errors
    /// The releases that took too long or failed with an unexpected code; or a summary, if no deploy succeeded.
    pub(super) fn end(self) -> Result<String, String> {
        drop(self.now);
        let deadline = Instant::now() + LIMIT;
        while !self.operator.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = self.operator.is_finished();
        let well = ended && self.operator.join().is_ok();
        if !well {
            return Err(format!("a release did not end within {LIMIT:?}"));
        }
        verdict(&self.all.lock())
    }
}

/// Check that each release was answered in time and with an expected code, and that a deploy succeeded.
fn verdict(all: &[Wanted]) -> Result<String, String> {
    let amiss = |wanted: &&Wanted| {
        let dishonest = |(code, _): &(String, String)| {
            !HONEST.contains(&code.as_str()) && !SILENT.contains(&code.as_str())
        };
        wanted.took > LIMIT || wanted.answer.as_ref().is_err_and(dishonest)
    };
    let wrong: Vec<String> = all.iter().filter(amiss).map(ToString::to_string).collect();
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    let done =
        |way: &str| all.iter().filter(|wanted| wanted.what.starts_with(way) && wanted.answer.is_ok()).count();
    let (deployed, rolled_back) = (done("deploy"), done("rollback"));
    let longest = all.iter().map(|wanted| wanted.took).max().unwrap_or_default();
    let said = format!(
        "{} of {} done, {deployed} deploys and {rolled_back} rollbacks; longest {:.1} s",
        deployed + rolled_back,
        all.len(),
        longest.as_secs_f64()
    );
    if deployed == 0 { Err(said) } else { Ok(said) }
}

impl Operator {
    fn work(mut self, every: Duration, now: &Receiver<()>) {
        loop {
            match now.recv_timeout(every.mul_f64(self.random.random_range(0.7..1.3))) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            }
            let places = self.places.lock().clone();
            if places.is_empty() {
                continue;
            }
            let place = &places[self.random.random_range(0..places.len())];
            let (module, settings) = self.modules[self.random.random_range(0..self.modules.len())];
            let back = self.released.contains(&module) && self.random.random_range(0..5) < 2;
            let words = if back {
                ["rollback", module].map(str::to_owned).into()
            } else {
                self.deploy(module, settings)
            };
            if self.say(module, &words, place) {
                self.released.push(module);
            }
        }
    }

    fn deploy(&mut self, module: &'static str, settings: bool) -> Vec<String> {
        // Never choose the component that runs: deploying it again is not a release.
        let last = self.last.entry(module).or_default();
        *last = (*last + self.random.random_range(1..VARIANTS)) % VARIANTS;
        let file = &self.files[module][usize::from(*last)];
        let mut words = vec!["deploy".to_owned(), file.display().to_string()];
        words.extend(["--name", module, "--timeout", TIMEOUT].map(str::to_owned));
        if settings && self.random.random() {
            // `fail-after` has no effect without the setting `fail`.
            let number: u32 = self.random.random_range(0..1000);
            words.extend(["--set".to_owned(), format!("fail-after={number}")]);
        }
        words
    }

    /// Run the verb and record its result. Return true if it succeeded.
    fn say(&self, module: &str, words: &[String], place: &Place) -> bool {
        let set = words.iter().any(|word| word == "--set");
        let what = format!(
            "{} {module}{} at {}",
            words[0],
            if set { " with a setting" } else { "" },
            place.name.split('@').next().unwrap_or_default()
        );
        let said = Instant::now();
        let words =
            ["--format".to_owned(), "json".to_owned()].iter().chain(words).cloned().collect::<Vec<_>>();
        let ran = verb(&place.data, &words);
        let answer = answer(&ran.stdout).unwrap_or_else(|| Err(("none".to_owned(), format!("{ran:?}"))));
        let wanted = Wanted { what, took: said.elapsed(), answer };
        println!("{:>8.1} s  {wanted}", said.duration_since(self.began).as_secs_f64());
        let done = wanted.answer.is_ok();
        self.all.lock().push(wanted);
        done
    }
}

/// Parse the last line of a verb's JSON output: a version, or an error's code and message.
fn answer(stdout: &str) -> Option<Result<u64, (String, String)>> {
    let last: Value = serde_json::from_str(stdout.lines().last()?).ok()?;
    if let Some(version) = last["version"].as_u64() {
        return Some(Ok(version));
    }
    let word = |name: &str| Some(last["error"][name].as_str()?.to_owned());
    Some(Err((word("code")?, format!("{} ({})", word("message")?, word("state")?))))
}

/// Check that every member runs the current release of each of this many modules.
///
/// # Errors
/// The row of the first module of which a member runs another release.
pub(super) fn run_everywhere(asked: &Node, modules: usize, members: usize) -> Result<String, String> {
    let rows = asked.json(&["modules"]);
    let rows = rows.lines().into_iter().next().unwrap_or_default();
    let rows = rows.as_array().cloned().unwrap_or_default();
    if rows.len() != modules {
        return Err(format!("there are {} modules", rows.len()));
    }
    for row in &rows {
        let nodes = row["nodes"].as_object().cloned().unwrap_or_default();
        let all = nodes.len() == members && nodes.values().all(|digest| *digest == row["digest"]);
        let unable = row["unable"].as_object().is_some_and(|unable| !unable.is_empty());
        if !all || unable {
            return Err(row.to_string());
        }
    }
    Ok(format!("{} modules on {members} nodes", rows.len()))
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, took, answer, .. } = self;
        write!(f, "{what}: ")?;
        match answer {
            Ok(version) => write!(f, "version {version}")?,
            Err((code, message)) => write!(f, "{code}: {message}")?,
        }
        write!(f, ", after {:.1} s", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(what: &str, answer: Result<u64, &str>) -> Wanted {
        let answer = answer.map_err(|code| (code.to_owned(), String::new()));
        Wanted { what: what.to_owned(), took: Duration::from_secs(1), answer }
    }

    #[test]
    fn an_expected_refusal_is_accepted_and_an_internal_error_or_a_late_answer_is_not() {
        let well = [wanted("deploy kv", Ok(2)), wanted("rollback kv", Err("no-quorum"))];
        assert!(verdict(&well).is_ok_and(|said| said.starts_with("1 of 2 done")));
        assert!(verdict(&well[1..]).is_err(), "nothing was deployed");
        for code in ["internal", "bad-arguments", "invalid-component", "none"] {
            assert!(verdict(&[well[0].clone(), wanted("deploy kv", Err(code))]).is_err(), "{code}");
        }
        let late = Wanted { took: LIMIT * 2, ..well[0].clone() };
        assert!(verdict(&[well[0].clone(), late]).is_err());
    }

    #[test]
    fn an_answer_is_a_version_or_an_error() {
        assert_eq!(answer("{\"name\":\"kv\",\"version\":3}"), Some(Ok(3)));
        let error = "{}\n{\"error\":{\"code\":\"no-quorum\",\"message\":\"m\",\"state\":\"unknown\"}}";
        assert_eq!(answer(error), Some(Err(("no-quorum".to_owned(), "m (unknown)".to_owned()))));
        assert_eq!(answer(""), None);
    }
}
