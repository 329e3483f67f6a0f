//! Enumerates every possible table on the smallest rings.

use annulus_core::ids::NodeId;

use super::problem::{Problem, Table};

/// Return the fewest replica moves, and the fewest owner moves among such tables, over all tables that keep
/// every guarantee.
pub fn fewest(problem: &Problem) -> Option<(usize, usize)> {
    let mut sets: Vec<Vec<NodeId>> = Vec::new();
    for mask in 0u32..1 << problem.nodes.len() {
        let set: Vec<NodeId> = (0..problem.nodes.len())
            .filter(|at| mask & 1 << at != 0)
            .map(|at| problem.nodes[at].id)
            .collect();
        if set.len() == problem.set() {
            // Each node is the owner in turn; the order of the others does not matter here.
            sets.extend((0..set.len()).map(|first| {
                let mut set = set.clone();
                set.swap(0, first);
                set
            }));
        }
    }
    let mut best = None;
    every(problem, &sets, &mut Vec::new(), &mut |table| {
        let cost = (problem.moved(table), problem.owners_moved(table));
        if best.is_none_or(|best| cost < best) && problem.check(table).is_ok() {
            best = Some(cost);
        }
    });
    best
}

fn every(problem: &Problem, sets: &[Vec<NodeId>], table: &mut Table, see: &mut dyn FnMut(&Table)) {
    if table.len() == problem.old.len() {
        return see(table);
    }
    for set in sets {
        table.push(set.clone());
        every(problem, sets, table, see);
        table.pop();
    }
}
