//! Nothing is left of what has ended: lives of nodes with their parts and tasks, guests of vnodes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::rule::{Broken, Rule};
use crate::run::Run;

/// How long a guest may be there that no vnode has: one that is tried before a release is brought.
const MOMENT: Duration = Duration::from_secs(10);

/// Looks at a run that is at rest.
///
/// # Errors
/// Something is left.
pub async fn check(run: &Run) -> Result<(), Broken> {
    if let Some(leak) = run.nodes().leaks().into_iter().next() {
        return Err(Rule::Leaks.broken(leak));
    }
    let began = Instant::now();
    loop {
        let (guests, vnodes) = (run.guests(), vnodes(run));
        if guests <= vnodes {
            return Ok(());
        }
        if began.elapsed() > MOMENT {
            return Err(Rule::Leaks.broken(format!("{guests} guests run, and there are {vnodes} vnodes")));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn vnodes(run: &Run) -> usize {
    let nodes = run.nodes();
    let lives = (0..nodes.count()).filter_map(|at| nodes.life(at));
    let slots = lives.flat_map(|life| life.services().master.status());
    slots.map(|slot| slot.vnodes + slot.staging + slot.aside).sum()
}
