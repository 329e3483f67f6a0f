//! A run that breaks a rule is shrunk, and the result can be saved and replayed.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use annulus_sim::saved::{Replayed, Saved};
use annulus_sim::shrink::{Bounds, Shrunk, is_same, shrink};
use annulus_sim::{Mutant, Report, Settings, run};

/// Bounds whose time is never reached, so that the result does not depend on the machine's speed.
const BOUNDS: Bounds = Bounds { runs: 400, time: Duration::from_secs(600) };

fn settings() -> Settings {
    Settings { mutant: Some(Mutant::ServeWhileSealed), ..Settings::default() }
}

/// Return the report of the first seed that breaks a rule because of the mutant, and its shrunk run. The modules of the seed
/// are scripts: components take many times as long, in each of some hundred runs.
fn broken() -> &'static (Report, Shrunk) {
    static BROKEN: OnceLock<(Report, Shrunk)> = OnceLock::new();
    BROKEN.get_or_init(find)
}

fn find() -> (Report, Shrunk) {
    let settings = settings();
    let is_it = |report: &Report| report.broken.is_some() && !report.nature.real;
    let broken = |seed| Some(run(seed, &settings)).filter(is_it);
    let report = (0..100).find_map(broken).expect("the mutant is caught");
    let shrunk = shrink(&settings, &report, BOUNDS, &AtomicBool::new(false), &|_, _| ()).unwrap();
    assert_eq!(shrunk.before, report.schedule.len());
    assert!(is_same(shrunk.report.broken.as_ref().unwrap(), report.broken.as_ref().unwrap()));
    (report, shrunk)
}

/// Environment variable that makes the second process replay this file.
const FILE: &str = "ANNULUS_SIM_REPLAYED_FILE";

#[test]
fn a_mutant_is_shrunk_to_a_few_acts_whose_file_replays_in_another_process() {
    if let Some(path) = std::env::var_os(FILE) {
        let (report, replayed) = Saved::read(Path::new(&path)).unwrap().run();
        return println!("{replayed:?}, trace {} after {} polls", report.trace, report.polls);
    }
    let Shrunk { report, settings: left, before, runs, complete } = &broken().1;
    println!("{before} acts, {} after {runs} runs: {left:?}", report.schedule.len());
    assert!(report.schedule.len() <= before / 2 && *complete && *before > 5, "{left:?}");
    assert_eq!(left.schedule.as_ref(), Some(&report.schedule));
    // Every remaining act is needed.
    for out in 0..report.schedule.len() {
        let mut schedule = report.schedule.clone();
        schedule.remove(out);
        let less = run(report.seed, &Settings { schedule: Some(schedule), ..left.clone() });
        assert!(!less.broken.is_some_and(|broken| is_same(&broken, report.broken.as_ref().unwrap())));
    }

    let dir = tempfile::tempdir().unwrap();
    let path = Saved::of(left, report).unwrap().write(dir.path()).unwrap();
    let name = "a_mutant_is_shrunk_to_a_few_acts_whose_file_replays_in_another_process";
    let mut other = std::process::Command::new(std::env::current_exe().unwrap());
    let other = other.args(["--exact", name, "--nocapture"]).env(FILE, &path).output().unwrap();
    let said = String::from_utf8_lossy(&other.stdout);
    let same = format!("{:?}, trace {} after {} polls", Replayed::Same, report.trace, report.polls);
    assert!(other.status.success() && said.contains(&same), "{same}; the other process: {said}");

    // Without the mutant the rule holds. With another trace the history differs.
    let mut mended = Saved::of(left, report).unwrap();
    mended.settings.mutant = None;
    assert_eq!(mended.run().1, Replayed::Holds);
    let mut other = Saved::of(left, report).unwrap();
    other.trace ^= 1;
    assert_eq!(other.run().1, Replayed::Otherwise);
}

#[test]
fn a_run_without_a_broken_rule_is_not_shrunk_and_bounds_are_kept() {
    let none = AtomicBool::new(false);
    let short = Settings { unrest: Duration::from_secs(4), ..Settings::default() };
    assert!(shrink(&short, &run(3, &short), BOUNDS, &none, &|_, _| ()).is_none());
    let (report, whole) = broken();
    let few = shrink(&settings(), report, Bounds { runs: 5, ..BOUNDS }, &none, &|_, _| ()).unwrap();
    assert!(!few.complete && few.runs <= 5);
    assert!(few.report.schedule.len() >= whole.report.schedule.len());
    let stopped = shrink(&settings(), report, BOUNDS, &AtomicBool::new(true), &|_, _| ()).unwrap();
    assert_eq!((stopped.runs, stopped.report.trace), (0, report.trace));
}
