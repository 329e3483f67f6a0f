//! The oracle of leaks: nothing of an ended node, transfer or vnode is left.
//!
//! The oracle checks the parts and tasks of ended nodes, the tasks of transfers and vnodes, the guests of vnodes and
//! their items, open files, and components that no release names.

use std::collections::BTreeSet;
use std::time::Duration;

use annulus_harness::At;
use rand::RngExt;
use tokio::time::{Instant, sleep};

use crate::rule::{Broken, Rule};
use crate::run::Run;

/// Longest time that a guest may exist without a vnode. A deploy runs a trial instance of a release, and an ending
/// part notifies others, which may be slow.
const MOMENT: Duration = Duration::from_secs(30);

/// Time for which a node may keep a component that no release names, and some slack.
const HOLD: Duration = Duration::from_secs(320);

/// One in this many seeds waits for [`HOLD`].
const WAITS_ONE_IN: u32 = 16;

/// Most tasks of one spawn site that a node may have at rest, per node and module of the run.
const TASKS_EACH: usize = 8;

/// Check a run that is at rest.
///
/// # Errors
/// Returns [`Rule::Leaks`] if something is left.
pub async fn check(run: &Run) -> Result<(), Broken> {
    if let Some(leak) = run.nodes().leaks().into_iter().next() {
        return Err(Rule::Leaks.broken(leak));
    }
    until_nothing(MOMENT, || what_runs(run)).await?;
    if run.world.stream("leaks").random_range(0..WAITS_ONE_IN) == 0 {
        until_nothing(HOLD, || components(run)).await?;
    }
    Ok(())
}

/// Poll until nothing is left, for at most `limit`.
async fn until_nothing(limit: Duration, left: impl Fn() -> Option<String>) -> Result<(), Broken> {
    let began = Instant::now();
    while let Some(what) = left() {
        if began.elapsed() > limit {
            return Err(Rule::Leaks.broken(what));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn what_runs(run: &Run) -> Option<String> {
    let (guests, stores) = (run.guests(), run.stores());
    let nodes = run.nodes();
    let living: Vec<At> = (0..nodes.count()).filter(|at| nodes.life(*at).is_some()).collect();
    let vnodes: usize = living.iter().map(|at| vnodes(run, *at)).sum();
    if guests > vnodes {
        return Some(format!("{guests} guests run, and there are {vnodes} vnodes"));
    }
    if stores > vnodes {
        return Some(format!("the host has the items of {stores} vnodes, and there are {vnodes}"));
    }
    living.into_iter().find_map(|at| tasks(run, at).or_else(|| files(run, at)))
}

fn vnodes(run: &Run, at: At) -> usize {
    let slots = run.nodes().life(at).map(|life| life.services().master.status()).unwrap_or_default();
    slots.iter().map(|slot| slot.vnodes + slot.staging + slot.aside).sum()
}

/// Find leaked tasks of a node: any task of a transfer, more tasks of vnodes than vnodes, or more tasks of another
/// spawn site than can have work.
fn tasks(run: &Run, at: At) -> Option<String> {
    let vnodes = vnodes(run, at);
    // A node that was removed and has not learnt of it continues the transfers that it knows of.
    let is_member = run.members().contains(&at);
    let many = TASKS_EACH * (run.nodes().count() + run.fleet.len());
    run.nodes().tasks(at).into_iter().find_map(|(from, tasks)| {
        let most = match &from {
            // One task follows the ring.
            from if from.contains("handoff/src/lib.rs") => 1,
            from if from.contains("handoff/src/") && is_member => 0,
            from if from.contains("vnode/src/actor/") => vnodes,
            _ => many,
        };
        (tasks > most)
            .then(|| format!("n{at} has {tasks} tasks of {from}, of which at most {most} can have work"))
    })
}

/// Find a file of a node that is open more than once.
fn files(run: &Run, at: At) -> Option<String> {
    let mut known = BTreeSet::new();
    let mut open = run.nodes().disk(at).open_files().into_iter();
    let twice = open.find(|path| !known.insert(path.clone()))?;
    Some(format!("n{at} has {} open more than once", twice.display()))
}

/// Find a component on a member's disk that no release names.
fn components(run: &Run) -> Option<String> {
    let state = run.newest()?;
    let releases = state.modules.values().flat_map(|module| module.releases());
    let named: BTreeSet<String> = releases.map(|release| format!("{}.wasm", release.digest)).collect();
    let nodes = run.nodes();
    run.members().into_iter().find_map(|at| {
        let disk = nodes.disk(at).disk();
        let entries = disk.list(&nodes.data(at).join("components")).unwrap_or_default();
        let mut names = entries.iter().map(|entry| entry.name.to_string_lossy().into_owned());
        let left = names.find(|name| !named.contains(name))?;
        Some(format!("n{at} has {left} on its disk, which no release names"))
    })
}
