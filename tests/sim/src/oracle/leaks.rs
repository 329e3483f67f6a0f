//! Nothing is left of what has ended: lives of nodes with their parts and tasks, tasks of transfers and vnodes, guests
//! of vnodes and their items, files that are open, components that no release names.

use std::collections::BTreeSet;
use std::time::Duration;

use annulus_harness::At;
use rand::RngExt;
use tokio::time::{Instant, sleep};

use crate::rule::{Broken, Rule};
use crate::run::Run;

/// How long a guest may be there that no vnode has: one that is tried before a release is brought. What ends says
/// so to others, and may be slow.
const MOMENT: Duration = Duration::from_secs(30);

/// How long a component may be on a disk that no release names, and a moment more.
const HOLD: Duration = Duration::from_secs(320);

/// One in so many seeds waits for that.
const WAITS_ONE_IN: u32 = 16;

/// Tasks that a node may have of one place in its code at rest, for each node and module of the run.
const TASKS_EACH: usize = 8;

/// Looks at a run that is at rest.
///
/// # Errors
/// Something is left.
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

/// Looks until nothing is left, or for so long.
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

/// Tasks of transfers, none of which go on; of vnodes that are gone; and more of any other kind than there can be
/// anything to do for.
fn tasks(run: &Run, at: At) -> Option<String> {
    let vnodes = vnodes(run, at);
    // A node that is none any more, and has not heard so, goes on with what it knows.
    let is_member = run.members().contains(&at);
    let many = TASKS_EACH * (run.nodes().count() + run.fleet.len());
    run.nodes().tasks(at).into_iter().find_map(|(from, tasks)| {
        let most = match &from {
            // What follows the ring.
            from if from.contains("handoff/src/lib.rs") => 1,
            from if from.contains("handoff/src/") && is_member => 0,
            from if from.contains("vnode/src/actor.rs") => vnodes,
            _ => many,
        };
        (tasks > most)
            .then(|| format!("n{at} has {tasks} tasks of {from}, where {most} have something to do"))
    })
}

/// A file that is open more than once.
fn files(run: &Run, at: At) -> Option<String> {
    let mut known = BTreeSet::new();
    let mut open = run.nodes().disk(at).open_files().into_iter();
    let twice = open.find(|path| !known.insert(path.clone()))?;
    Some(format!("n{at} has {} open more than once", twice.display()))
}

/// A component on a member's disk that no release names.
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
