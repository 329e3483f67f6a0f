//! The input of a claim and the requirements on its output, written without any of the claim's code.

use annulus_core::claim::ClaimNode;
use annulus_core::ids::{NodeId, TransferId};
use annulus_core::keyspace::RingSize;
use annulus_core::ring::{Partition, RingTable, Transfer};

pub type Table = Vec<Vec<NodeId>>;

/// A claim to be made.
#[derive(Clone, Debug)]
pub struct Problem {
    pub old: Table,
    /// Per partition: whether its set in `old` is the target of a pending transfer.
    pub pending: Vec<bool>,
    pub nodes: Vec<ClaimNode>,
    pub width: usize,
}

impl Problem {
    pub fn new(old: Table, nodes: Vec<ClaimNode>, width: usize) -> Self {
        Self { pending: vec![false; old.len()], old, nodes, width }
    }

    /// Return the ring. Its size is only nominal: the smallest rings of these tests are smaller than a ring
    /// size may be.
    pub fn ring(&self) -> RingTable {
        let partition = |(set, pending): (&Vec<NodeId>, &bool)| match pending {
            false => Partition::held_by(set.clone(), 1),
            true => Partition {
                pending: Some(Transfer::new(TransferId(2), set.clone())),
                ..Partition::held_by(vec![NodeId(9999)], 1)
            },
        };
        let size = (self.old.len() as u32).max(8).next_power_of_two();
        RingTable {
            size: RingSize::try_from(size).unwrap(),
            epoch: 1,
            partitions: self.old.iter().zip(&self.pending).map(partition).collect(),
        }
    }

    pub fn claim(&self) -> Table {
        annulus_core::claim::claim(&self.ring(), &self.nodes, self.width as u8)
    }

    /// Return the number of nodes in a set.
    pub fn set(&self) -> usize {
        self.width.min(self.nodes.len())
    }

    pub fn at(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    /// Return the zone of each node as a number.
    pub fn zones(&self) -> Vec<usize> {
        let same = |a: usize, b: usize| {
            a == b || self.nodes[a].zone.is_some() && self.nodes[a].zone == self.nodes[b].zone
        };
        (0..self.nodes.len()).map(|a| (0..=a).find(|b| same(a, *b)).unwrap()).collect()
    }

    /// Return the smallest limit of nodes per zone with which a set can be filled.
    pub fn zone_limit(&self) -> usize {
        let zones = self.zones();
        let fills = |limit: usize| {
            let of = |zone: usize| zones.iter().filter(|other| **other == zone).count().min(limit);
            (0..zones.len()).map(of).sum::<usize>() >= self.set()
        };
        (1..=self.set()).find(|limit| fills(*limit)).unwrap()
    }

    /// Return the fair share of each node in sets of `length`, as (over, under). All nodes have one level by
    /// weight, but a node is at most once in a set and a zone at most as often as its limit; a zone at its
    /// limit has a separate level.
    ///
    /// The level is found by trying each number of full zones: a share changes its kind only where a node or
    /// a zone becomes full, and between these points the sum is linear.
    pub fn shares(&self, length: usize) -> Vec<(u128, u128)> {
        let q = self.old.len() as u128;
        let (zones, limit) = (self.zones(), self.zone_limit() as u128);
        let weights: Vec<u128> = self.nodes.iter().map(|node| u128::from(node.weight.max(1))).collect();
        let members = |zone: usize| (0..zones.len()).filter(|at| zones[*at] == zone).collect::<Vec<_>>();
        let heads: Vec<usize> = (0..zones.len()).filter(|at| zones[*at] == *at).collect();
        let cap = |zone: usize| q * limit.min(members(zone).len() as u128);
        // The level at which each zone is full, in ascending order.
        let mut order: Vec<(usize, (u128, u128))> =
            heads.iter().map(|zone| (*zone, level(&members(*zone), &weights, q, cap(*zone)))).collect();
        order.sort_by(|(_, a), (_, b)| (a.0 * b.1).cmp(&(b.0 * a.1)));
        for full in 0..=order.len() {
            let rest: Vec<usize> = order[full..].iter().flat_map(|(zone, _)| members(*zone)).collect();
            let taken: u128 = order[..full].iter().map(|(zone, _)| cap(*zone)).sum();
            let Some(left) = (q * length as u128).checked_sub(taken) else { continue };
            if rest.is_empty() && left > 0 {
                continue;
            }
            let common = if rest.is_empty() { (0, 1) } else { level(&rest, &weights, q, left) };
            // The first zone that is not full must not be overfull at this level.
            if order.get(full).is_some_and(|(_, at)| common.0 * at.1 > at.0 * common.1) {
                continue;
            }
            let mut shares = vec![(0, 1); zones.len()];
            let mut set = |nodes: &[usize], level: (u128, u128)| {
                for at in nodes {
                    let over = level.0 * weights[*at];
                    shares[*at] = if over > q * level.1 { (q, 1) } else { (over, level.1) };
                }
            };
            order[..full].iter().for_each(|(zone, level)| set(&members(*zone), *level));
            set(&rest, common);
            return shares;
        }
        panic!("there is a level for every whole");
    }

    /// Return the lowest and the highest load of each node in sets of `length`.
    pub fn bounds(&self, length: usize) -> Vec<(usize, usize)> {
        let round = |(over, under): (u128, u128)| ((over / under) as usize, over.div_ceil(under) as usize);
        self.shares(length).into_iter().map(round).collect()
    }

    /// Count the sets of `table`, cut to `length`, that each node is in.
    pub fn loads(&self, table: &Table, length: usize) -> Vec<usize> {
        let mut loads = vec![0; self.nodes.len()];
        for node in table.iter().flat_map(|set| &set[..length.min(set.len())]) {
            loads[self.at(*node).unwrap()] += 1;
        }
        loads
    }

    /// Count the replicas on nodes that did not have them before.
    pub fn moved(&self, new: &Table) -> usize {
        let pairs = self.old.iter().zip(new);
        pairs.map(|(old, new)| new.iter().filter(|node| !old.contains(node)).count()).sum()
    }

    /// Count the partitions whose owner changes.
    pub fn owners_moved(&self, new: &Table) -> usize {
        self.old.iter().zip(new).filter(|(old, new)| old.first() != new.first()).count()
    }

    /// Check every guarantee except the fewest moves, for the loads of whole sets and of owners.
    pub fn check(&self, new: &Table) -> Result<(), String> {
        let (zones, limit) = (self.zones(), self.zone_limit());
        if new.len() != self.old.len() {
            return Err(format!("{} partitions", new.len()));
        }
        for (id, set) in new.iter().enumerate() {
            if set.len() != self.set() {
                return Err(format!("partition {id} has {} replicas: {set:?}", set.len()));
            }
            let mut in_zone = vec![0; zones.len()];
            for (at, node) in set.iter().enumerate() {
                let known = self.at(*node).ok_or(format!("node {node} was not asked for"))?;
                in_zone[zones[known]] += 1;
                if set[..at].contains(node) || in_zone[zones[known]] > limit {
                    return Err(format!("partition {id}: a node or zone too often: {set:?}"));
                }
            }
        }
        for length in [1, self.set()] {
            let loads = self.loads(new, length);
            for ((node, load), (low, high)) in self.nodes.iter().zip(loads).zip(self.bounds(length)) {
                if !(low..=high).contains(&load) {
                    return Err(format!(
                        "node {} is in {load} sets of {length}, not {low}..={high}",
                        node.id
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Return the level at which these nodes hold `whole` together, each at most `q`, as (over, under).
fn level(nodes: &[usize], weights: &[u128], q: u128, whole: u128) -> (u128, u128) {
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|at| std::cmp::Reverse(weights[*at]));
    for full in 0..nodes.len() {
        let weight: u128 = nodes[full..].iter().map(|at| weights[*at]).sum();
        let Some(left) = whole.checked_sub(q * full as u128) else { break };
        // level = left / weight; the heaviest node that is not full has room for it.
        if left * weights[nodes[full]] <= q * weight {
            return (left, weight);
        }
    }
    panic!("{whole} does not fit into {} nodes", nodes.len());
}
