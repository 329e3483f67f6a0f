//! The moves of partitions of modules with several replicas: one replica at a time.
//!
//! While a transfer is pending, reads and writes need a quorum of the members and one of the nodes that will be the members
//! (`quorum`). A node that is to become a member answers no read until it has the items. So a set changes by one such node
//! at a time, and the others of both sets answer meanwhile; the table of a rebalancing is reached in steps.

use std::collections::BTreeSet;

use super::{ClusterState, Module, Refusal};
use crate::claim::claim;
use crate::ids::NodeId;
use crate::mutants::{self, Mutant};
use crate::ring::{Partition, RingTable};

/// The first level at which replicas that stay in a smaller set report.
const LEVELLED: u32 = 7;

impl ClusterState {
    /// Return a module with several replicas, if there is one.
    pub fn replicated(&self) -> Option<&Module> {
        self.modules.values().find(|module| module.n > 1)
    }

    /// Return the numbers of replicas of modules with several.
    fn numbers(&self) -> BTreeSet<usize> {
        self.modules.values().map(|module| usize::from(module.n)).filter(|n| *n > 1).collect()
    }

    /// Return the table that the ring `now` should aim at. The claim starts from the ring `from`.
    pub(super) fn table_from(&self, from: &RingTable, now: &RingTable) -> Vec<Vec<NodeId>> {
        let goal = claim(from, &self.claim_nodes(), self.width);
        let numbers = self.numbers();
        if numbers.is_empty() {
            return goal;
        }
        let next = |(partition, goal): (&Partition, Vec<NodeId>)| self.next_set(partition, goal, &numbers);
        now.partitions.iter().zip(goal).map(next).collect()
    }

    fn next_set(&self, partition: &Partition, goal: Vec<NodeId>, numbers: &BTreeSet<usize>) -> Vec<NodeId> {
        let stays = |node: &NodeId| self.member(*node).is_some();
        if let Some(pending) = &partition.pending
            && pending.target.iter().all(stays)
        {
            return pending.target.clone();
        }
        let set: Vec<NodeId> = partition.replicas.iter().copied().filter(stays).collect();
        if set.is_empty() { goal } else { step(set, goal, numbers) }
    }

    /// Refuse a table that is not reached in steps.
    pub(super) fn check_steps(&self, table: &[Vec<NodeId>]) -> Result<(), Refusal> {
        let numbers = self.numbers();
        if numbers.is_empty() {
            return Ok(());
        }
        for ((id, partition), target) in self.ring.iter().zip(table) {
            if partition.target() == target {
                continue;
            }
            let set: Vec<NodeId> =
                partition.replicas.iter().copied().filter(|node| self.member(*node).is_some()).collect();
            if !set.is_empty() && !is_step(&set, target, &numbers) {
                return Err(Refusal::BadTable(format!(
                    "more than one replica of partition {} would move at once",
                    id.0
                )));
            }
        }
        Ok(())
    }

    /// Return the nodes that report that they have the items of a module with `n` replicas, before the pending transfer of a
    /// partition is complete: its successors, and from state level 7 on the replicas that stay in a smaller set.
    pub fn reporters<'a>(
        &self,
        partition: &'a Partition,
        n: usize,
    ) -> impl Iterator<Item = NodeId> + use<'a> {
        let levels = self.level >= LEVELLED && !mutants::on(Mutant::FlipUnlevelled);
        partition.successors(n).chain(partition.levellers(n).filter(move |_| levels))
    }

    /// Return true if every reporter of a pending transfer has the items of every module with several replicas (R4). The
    /// transfer has to do with modules with one replica, too: its sender decides about those.
    pub fn has_arrived(&self, partition: &Partition) -> bool {
        self.awaited(partition).next().is_none()
    }

    /// Return the reports that a pending transfer waits for: each the module, and the node that is to have its items.
    pub fn awaited<'a>(&'a self, partition: &'a Partition) -> impl Iterator<Item = (&'a Module, NodeId)> {
        let replicated = self.modules.values().filter(|module| module.n > 1);
        partition.pending.iter().flat_map(move |pending| {
            replicated.clone().flat_map(move |module| {
                let reporters =
                    self.reporters(partition, usize::from(module.n)).map(move |node| (module, node));
                reporters.filter(move |(module, node)| !pending.arrived.contains(&(module.uid, *node)))
            })
        })
    }
}

/// Return true if a change adds at most one node to the replicas of each module.
fn is_step(set: &[NodeId], next: &[NodeId], numbers: &BTreeSet<usize>) -> bool {
    numbers.iter().all(|n| {
        let (set, next) = (&set[..set.len().min(*n)], &next[..next.len().min(*n)]);
        next.iter().filter(|node| !set.contains(node)).count() <= 1
    })
}

/// Return the next set on the way to a goal.
fn step(mut set: Vec<NodeId>, goal: Vec<NodeId>, numbers: &BTreeSet<usize>) -> Vec<NodeId> {
    if is_step(&set, &goal, numbers) {
        return goal;
    }
    let leaver = set.iter().rposition(|node| !goal.contains(node));
    match (goal.iter().find(|node| !set.contains(node)), leaver) {
        (Some(comer), Some(leaver)) => set[leaver] = *comer,
        (Some(comer), None) => set.push(*comer),
        (None, Some(leaver)) => drop(set.remove(leaver)),
        // The same nodes in another order.
        (None, None) => {
            let wrong = set.iter().zip(&goal).position(|(node, goal)| node != goal);
            if let Some(at) = wrong
                && let Some(from) = set.iter().position(|node| *node == goal[at])
            {
                set.swap(at, from);
            }
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(nodes: &[u64]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    /// Every set of up to four of six nodes reaches every other one in steps, for modules with two and with three replicas.
    #[test]
    fn every_goal_is_reached_in_steps() {
        let numbers = BTreeSet::from([2, 3]);
        let mut sets = vec![Vec::new()];
        for _ in 0..3 {
            let longer = sets.iter().flat_map(|set: &Vec<u64>| {
                (1..=6).filter(|node| !set.contains(node)).map(|node| [&set[..], &[node]].concat())
            });
            sets = std::iter::once(Vec::new()).chain(longer).collect();
        }
        sets.retain(|set| !set.is_empty());
        let mut longest = 0;
        for from in &sets {
            for goal in &sets {
                let (mut set, goal, mut steps) = (ids(from), ids(goal), 0);
                while set != goal {
                    let next = step(set.clone(), goal.clone(), &numbers);
                    assert!(is_step(&set, &next, &numbers), "{set:?} to {next:?}");
                    (set, steps) = (next, steps + 1);
                    assert!(steps < 10, "{from:?} to {goal:?}");
                }
                longest = longest.max(steps);
            }
        }
        assert!(longest > 2);
        // Nothing else than the goal, if that is a step.
        assert_eq!(step(ids(&[1, 2, 3]), ids(&[4, 1, 2]), &numbers), ids(&[4, 1, 2]));
        assert_eq!(step(ids(&[1, 2, 3]), ids(&[4, 5, 6]), &numbers), ids(&[1, 2, 4]));
    }
}
