//! Shrinks a run that breaks a rule: removes acts and reduces settings, as long as the same rule breaks in the same
//! way.
//!
//! The method is delta debugging. Parts of the schedule are removed, first large ones and then single acts, until
//! every remaining act is needed. The seed's other random numbers do not depend on the schedule, so most of a history
//! stays the same. Then all other settings are reduced, by [`SMALLER`] and [`milder`]. The steps repeat until none of
//! them helps. Candidates run in parallel, and the first one in their order that breaks the rule is taken: the result
//! depends on neither the number of cores nor their speed, unless a bound ends the search.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::rule::Broken;
use crate::schedule::Act;
use crate::{Report, Settings, run};

/// The bounds of a search. The default is 600 runs and 90 seconds.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Largest number of runs.
    pub runs: usize,
    /// Longest time, by the wall clock.
    pub time: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { runs: 600, time: Duration::from_secs(90) }
    }
}

/// The result of shrinking a run.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The reduced settings, including the schedule.
    pub settings: Settings,
    /// The report of the run with these settings.
    pub report: Report,
    /// Number of acts before shrinking.
    pub before: usize,
    /// Number of runs that the search took.
    pub runs: usize,
    /// True if nothing more can be removed; false if a bound or the caller ended the search.
    pub complete: bool,
}

/// Ways to reduce settings. Each returns candidates that differ from its input, the smallest first, and none if it
/// cannot reduce them further.
pub const SMALLER: &[fn(&Settings) -> Vec<Settings>] = &[
    |settings| {
        // Each key has one client, so fewer keys make fewer requests.
        let keys = settings.keys;
        fewer(1, keys).map(|keys| Settings { keys, ..settings.clone() }).collect()
    },
    |settings| {
        let Some(nodes) = settings.nodes else { return Vec::new() };
        let with = |nodes| Settings { nodes: Some(nodes), ..fitting(settings, nodes, usize::MAX) };
        fewer(2, nodes).map(with).collect()
    },
    |settings| {
        // Without a limit the seed has drawn the number, which is not known here.
        let modules: Vec<usize> = settings.modules.map_or(vec![1, 2], |modules| fewer(1, modules).collect());
        let with = |modules| Settings { modules: Some(modules), ..fitting(settings, usize::MAX, modules) };
        modules.into_iter().map(with).collect()
    },
    |settings| {
        // All planned acts must start within the unrest.
        let last = settings.schedule.iter().flatten().map(|(at, _)| *at).max().unwrap_or_default();
        let least = usize::try_from(last.as_secs() + 1).unwrap_or(usize::MAX);
        let now = usize::try_from(settings.unrest.as_secs()).unwrap_or(usize::MAX);
        let unrest = fewer(least, now).map(|seconds| Duration::from_secs(seconds as u64));
        unrest.map(|unrest| Settings { unrest, ..settings.clone() }).collect()
    },
    |settings| {
        let plainer = settings.nature.map(crate::Nature::plainer).unwrap_or_default();
        plainer.into_iter().map(|nature| Settings { nature: Some(nature), ..settings.clone() }).collect()
    },
];

/// Return the candidates for a number below `than`, but not below `least`: the least, half, and one less.
fn fewer(least: usize, than: usize) -> impl Iterator<Item = usize> {
    let mut all = vec![least, than / 2, than.saturating_sub(1)];
    all.retain(|number| (least..than).contains(number));
    all.dedup();
    all.into_iter()
}

/// Return the settings without the acts on nodes and modules that do not exist with these numbers of them.
fn fitting(settings: &Settings, nodes: usize, modules: usize) -> Settings {
    let fits = |act: &Act| match act {
        Act::Kill { at, .. }
        | Act::Pause { at, .. }
        | Act::Jump { at, .. }
        | Act::Disk { at, .. }
        | Act::Stale { at, .. }
        | Act::Wipe { at, .. }
        | Act::Upgrade { at, .. } => *at < nodes,
        Act::Cut { ways, .. } => ways.iter().all(|(from, to)| *from < nodes && *to < nodes),
        Act::Deploy { module } | Act::Rollback { module } | Act::Undeploy { module, .. } => *module < modules,
        _ => true,
    };
    let mut settings = settings.clone();
    settings.schedule.iter_mut().for_each(|schedule| schedule.retain(|(_, act)| fits(act)));
    settings
}

/// Return candidates for an act that do less: no loss of power, one cut direction less, half the duration.
pub fn milder(act: &Act) -> Vec<Act> {
    let shortest = Duration::from_millis(20);
    let mut milder = Vec::new();
    match act {
        Act::Kill { at, lasts, power: true } => {
            milder.push(Act::Kill { at: *at, lasts: *lasts, power: false });
        }
        Act::Cut { ways, lasts } if ways.len() > 1 => milder.extend((0..ways.len()).map(|out| {
            let mut ways = ways.clone();
            ways.remove(out);
            Act::Cut { ways, lasts: *lasts }
        })),
        _ => {}
    }
    let mut shorter = act.clone();
    match &mut shorter {
        Act::Kill { lasts, .. }
        | Act::Pause { lasts, .. }
        | Act::Cut { lasts, .. }
        | Act::Slow { lasts, .. }
        | Act::Disk { lasts, .. }
        | Act::Stale { lasts, .. }
        | Act::Wipe { lasts, .. }
        | Act::Down { lasts, .. }
        | Act::Undeploy { lasts, .. }
        | Act::Hold { lasts }
        | Act::RecoverApart { lasts, .. }
        | Act::Upgrade { lasts, .. }
            if *lasts > shortest =>
        {
            *lasts /= 2;
            milder.push(shorter);
        }
        _ => {}
    }
    milder
}

/// Return true if both violate the same rule in the same way: their details are equal except for digits, so that
/// node, partition, key and time do not matter.
pub fn is_same(one: &Broken, other: &Broken) -> bool {
    let words = |broken: &Broken| broken.what.replace(|letter: char| letter.is_ascii_digit(), "");
    one.rule == other.rule && words(one) == words(other)
}

/// Shrink the run with these settings, whose report is `report`. Return `None` if it broke no rule.
///
/// Setting `stop` ends the search with the best result so far. `tell` is called after every few runs with the number
/// of runs and of remaining acts.
pub fn shrink(
    settings: &Settings,
    report: &Report,
    bounds: Bounds,
    stop: &AtomicBool,
    tell: &(dyn Fn(usize, usize) + Sync),
) -> Option<Shrunk> {
    let broken = report.broken.clone()?;
    let before = report.schedule.len();
    let settings = report.settings(settings);
    let report = report.clone();
    let mut search = Search { broken, bounds, stop, tell, began: Instant::now(), runs: 0, settings, report };
    loop {
        let smaller = search.leave_out() | search.make_smaller() | search.make_milder();
        if !smaller || search.is_over() {
            break;
        }
    }
    let complete = !search.is_over();
    let Search { settings, report, runs, .. } = search;
    Some(Shrunk { settings, report, before, runs, complete })
}

struct Search<'a> {
    broken: Broken,
    bounds: Bounds,
    stop: &'a AtomicBool,
    tell: &'a (dyn Fn(usize, usize) + Sync),
    began: Instant,
    runs: usize,
    /// The smallest settings so far that break the rule.
    settings: Settings,
    report: Report,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        self.runs >= self.bounds.runs
            || self.began.elapsed() >= self.bounds.time
            || self.stop.load(Ordering::Relaxed)
    }

    fn acts(&self) -> usize {
        self.settings.schedule.as_ref().map_or(0, Vec::len)
    }

    /// Remove acts. Return true if some were removed.
    fn leave_out(&mut self) -> bool {
        let mut any = false;
        let mut size = self.acts();
        while size > 0 {
            // Start at the end: the last acts influence the fewest others.
            let mut end = self.acts();
            while end > 0 {
                let schedule = self.settings.schedule.clone().unwrap_or_default();
                let ends = std::iter::successors(Some(end), |end| end.checked_sub(size));
                let ends: Vec<usize> = ends.filter(|end| *end > 0).collect();
                let without = |end: &usize| {
                    let mut schedule = schedule.clone();
                    schedule.drain(end.saturating_sub(size)..*end);
                    Settings { schedule: Some(schedule), ..self.settings.clone() }
                };
                let candidates: Vec<Settings> = ends.iter().map(without).collect();
                let Some(found) = self.first(&candidates) else { break };
                any = true;
                end = ends[found].saturating_sub(size);
            }
            if self.is_over() {
                break;
            }
            size = if size == 1 { 0 } else { size.min(self.acts()).div_ceil(2) };
        }
        any
    }

    /// Reduce all settings other than the schedule. Return true if one was reduced.
    fn make_smaller(&mut self) -> bool {
        let mut any = false;
        for way in SMALLER {
            while self.first(&way(&self.settings)).is_some() {
                any = true;
            }
        }
        any
    }

    /// Make acts milder. Return true if one was.
    fn make_milder(&mut self) -> bool {
        let mut any = false;
        for place in 0..self.acts() {
            loop {
                let schedule = self.settings.schedule.clone().unwrap_or_default();
                let instead = |act: Act| {
                    let mut schedule = schedule.clone();
                    schedule[place].1 = act;
                    Settings { schedule: Some(schedule), ..self.settings.clone() }
                };
                let candidates: Vec<Settings> = milder(&schedule[place].1).into_iter().map(instead).collect();
                if self.first(&candidates).is_none() {
                    break;
                }
                any = true;
            }
        }
        any
    }

    /// Adopt the first candidate that breaks the rule, and return its index.
    fn first(&mut self, candidates: &[Settings]) -> Option<usize> {
        let seed = self.report.seed;
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let (next, ran) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let found = Mutex::new(None::<(usize, Report)>);
        let left = self.bounds.runs.saturating_sub(self.runs).min(candidates.len());
        let work = || {
            loop {
                let over = self.began.elapsed() >= self.bounds.time || self.stop.load(Ordering::Relaxed);
                let number = next.fetch_add(1, Ordering::Relaxed);
                // A candidate behind one that already broke the rule cannot be the first.
                let is_late = |found: &Option<(usize, Report)>| {
                    found.as_ref().is_some_and(|(earlier, _)| *earlier < number)
                };
                let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
                if over || number >= left || is_late(&lock()) {
                    return;
                }
                ran.fetch_add(1, Ordering::Relaxed);
                let report = run(seed, &candidates[number]);
                if report.broken.as_ref().is_some_and(|broken| is_same(broken, &self.broken)) {
                    let mut found = lock();
                    if !is_late(&found) {
                        *found = Some((number, report));
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            (1..workers.min(left)).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.runs += ran.into_inner();
        let answer = found.map(|(number, report)| {
            self.settings = candidates[number].clone();
            self.report = report;
            number
        });
        (self.tell)(self.runs, self.acts());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reducing_settings_terminates() {
        let kill = Act::Kill { at: 0, lasts: Duration::from_secs(8), power: true };
        let schedule = Some(vec![(Duration::from_secs(3), kill)]);
        let nature = Some(crate::Nature { real: true, drift: true, tight: true, replicated: true });
        let settings = Settings { nodes: Some(5), schedule, nature, ..Settings::default() };
        for way in SMALLER {
            for pick in [0, usize::MAX] {
                let (mut smallest, mut steps) = (settings.clone(), 0);
                loop {
                    let candidates = way(&smallest);
                    assert!(!candidates.contains(&smallest), "{smallest:?}");
                    let Some(next) = candidates.get(pick.min(candidates.len().saturating_sub(1))) else {
                        break;
                    };
                    (smallest, steps) = (next.clone(), steps + 1);
                    assert!(steps < 100, "{smallest:?}");
                }
                assert!(steps > 0, "{settings:?}");
            }
        }
    }

    #[test]
    fn making_an_act_milder_terminates() {
        let lasts = Duration::from_secs(4);
        let cut = Act::Cut { ways: vec![(0, 1), (1, 0)], lasts };
        assert_eq!(milder(&cut)[0], Act::Cut { ways: vec![(1, 0)], lasts });
        for act in [
            cut,
            Act::Kill { at: 1, lasts, power: true },
            Act::Slow { times: 9, lasts },
            Act::Join { pick: 7 },
        ] {
            let (mut mildest, mut steps) = (act, 0);
            while let Some(next) = milder(&mildest).pop() {
                (mildest, steps) = (next, steps + 1);
                assert!(steps < 100, "{mildest:?}");
            }
        }
    }
}
