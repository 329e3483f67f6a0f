//! Nothing is left of what has ended: lives of nodes with their parts and tasks, guests of vnodes.

use crate::rule::{Broken, Rule};
use crate::run::Run;

/// Looks at a run that is at rest.
///
/// # Errors
/// Something is left.
pub fn check(run: &Run) -> Result<(), Broken> {
    let nodes = run.nodes();
    if let Some(leak) = nodes.leaks().into_iter().next() {
        return Err(Rule::Leaks.broken(leak));
    }
    let lives = (0..nodes.count()).filter_map(|at| nodes.life(at));
    let vnodes: usize = lives
        .flat_map(|life| life.services().master.status())
        .map(|slot| slot.vnodes + slot.staging + slot.aside)
        .sum();
    let guests = run.guests();
    if guests > vnodes {
        return Err(Rule::Leaks.broken(format!("{guests} guests run, and there are {vnodes} vnodes")));
    }
    Ok(())
}
