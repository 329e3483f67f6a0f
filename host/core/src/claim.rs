//! The claim, which computes the nodes that should hold each partition (DESIGN.md D2).
//!
//! A replica set never repeats a node, nor a zone if there are enough zones. Under this condition, these are
//! the goals in order of priority:
//!
//! 1. every node's load is within ±1 of its weighted share, counted both over whole sets and over owners;
//! 2. the fewest replicas move (exact; `claim/flow.rs` explains why);
//! 3. among such tables, the fewest owners move: this is exact for the owners that the sets allow;
//! 4. partitions at rest are moved in preference to partitions in transfer, so that a change during a
//!    rebalancing continues it and restarts little of it;
//! 5. the places behind the owner are balanced and kept in the same way, one after the other, because a
//!    module with `n` replicas uses prefix(n) of every set (R4).
//!
//! Replicas come before owners because a module with n > 1 sends nothing but replicas, and because this costs
//! the other modules nothing: after joins and leaves from a ring that was claimed, both are minimal at once.
//! `tests/claim.rs` checks this against every possible table on small rings.

mod flow;
mod shares;

use crate::ids::NodeId;
use crate::mutants::{self, Mutant};
use crate::ring::RingTable;

/// A node that may hold partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimNode {
    /// The node's id. If an id is given twice, the first entry counts.
    pub id: NodeId,
    /// Share of the ring relative to the other nodes; 0 counts as 1.
    pub weight: u32,
    /// The failure domain; a node without one counts as a separate domain.
    pub zone: Option<String>,
}

/// Compute the target table: for every partition an ordered set of `min(width, nodes)` nodes.
///
/// The starting point is the ring after its pending transfers: a pending set counts as the present one. The
/// same input gives the same table, whatever the order of `nodes`. With no nodes, or with a width of 0, the
/// ring stays unchanged.
pub fn claim(current: &RingTable, nodes: &[ClaimNode], width: u8) -> Vec<Vec<NodeId>> {
    let present = current.partitions.iter().map(|partition| partition.target());
    let mut nodes: Vec<&ClaimNode> = nodes.iter().collect();
    nodes.sort_by_key(|node| node.id);
    nodes.dedup_by_key(|node| node.id);
    let width = usize::from(width).min(nodes.len());
    if width == 0 {
        return present.map(<[NodeId]>::to_vec).collect();
    }

    let position = |id: &NodeId| nodes.binary_search_by_key(id, |node| node.id).ok();
    let places: Vec<Vec<Option<usize>>> = present.map(|set| set.iter().map(position).collect()).collect();
    let pending: Vec<bool> = current.partitions.iter().map(|partition| partition.pending.is_some()).collect();
    let zones = zones(&nodes);
    let weights: Vec<u64> = nodes.iter().map(|node| u64::from(node.weight.max(1))).collect();
    let zone_limit = zone_limit(&zones, width);

    let claim = Claim {
        nodes: nodes.len(),
        width,
        places: &places,
        pending: &pending,
        weights: &weights,
        zones: &zones,
        zone_limit,
        prices: flow::Prices::new(places.len(), width),
    };
    let mut sets = claim.order(claim.sets_and_owners());
    if mutants::on(Mutant::RepeatANode) {
        for set in &mut sets {
            *set = vec![set[0]; set.len()];
        }
    }
    sets.into_iter().map(|set| set.into_iter().map(|at| nodes[at].id).collect()).collect()
}

/// For each partition, the nodes that it has or may have.
type Sets = Vec<Vec<usize>>;

struct Claim<'a> {
    nodes: usize,
    width: usize,
    /// Present set of each partition; `None` marks a node that may no longer hold anything.
    places: &'a [Vec<Option<usize>>],
    /// Per partition: whether its present set is the target of a pending transfer.
    pending: &'a [bool],
    weights: &'a [u64],
    zones: &'a [usize],
    /// The maximum number of nodes of one zone in a set.
    zone_limit: usize,
    prices: flow::Prices,
}

impl Claim<'_> {
    /// Choose every set and its owner.
    ///
    /// Choosing sets first and then an owner in each is exact for the sets. Among equally good sets, however,
    /// it may pick some that cost the owners an extra move. So if the owners alone would need fewer moves,
    /// the reverse order is tried as well, and the better result is taken.
    fn sets_and_owners(&self) -> (Sets, Sets) {
        let none = vec![Vec::new(); self.places.len()];
        let sets = self.sets(none.clone());
        let owners = self.next(none.clone(), Some(&sets));
        let alone = self.next(none, None);
        if self.cost(&alone, 1, 1) < self.cost(&owners, 1, 1) {
            let around = self.sets(alone.clone());
            let whole = usize::MAX;
            if self.cost(&around, self.width, whole) <= self.cost(&sets, self.width, whole) {
                return (around, alone);
            }
        }
        (sets, owners)
    }

    /// Return the cost of prefix(length) of each set: the squared amount by which loads miss their bounds;
    /// the number of nodes that are not in prefix(present) of the present set; the number of those in
    /// partitions whose present set is pending.
    fn cost(&self, sets: &Sets, length: usize, present: usize) -> (i64, usize, usize) {
        let mut loads = vec![0i64; self.nodes];
        sets.iter().flatten().for_each(|node| loads[*node] += 1);
        let missed = loads.iter().zip(self.bounds(length));
        let missed =
            missed.map(|(load, bounds)| (load - bounds.high).max(bounds.low - load).max(0).pow(2)).sum();
        let (mut moved, mut disturbed) = (0, 0);
        for ((set, places), pending) in sets.iter().zip(self.places).zip(self.pending) {
            let present = &places[..present.min(places.len())];
            let new = set.iter().filter(|node| !present.contains(&Some(**node))).count();
            moved += new;
            disturbed += if *pending { new } else { 0 };
        }
        (missed, moved, disturbed)
    }

    /// Complete the nodes chosen so far to whole sets, in no particular order.
    fn sets(&self, mut chosen: Sets) -> Sets {
        // Present members rank by their place, the owner lowest, so that the owner is the last to be dropped.
        // A node that is not in the present set ranks above them.
        let stranger = self.places.iter().map(Vec::len).max().unwrap_or(0);
        let rank =
            |at: usize, place: Option<usize>| place.unwrap_or(stranger + usize::from(self.pending[at]));
        let cost = |rank| if rank < stranger { rank as i64 } else { self.prices.moving };
        let costs = (0..=stranger).map(cost).chain([self.prices.moving + self.prices.disturbing]);
        let choose = self.width - chosen[0].len();
        let more = flow::solve(flow::Step {
            choose,
            ranks: self.ranks(None, rank),
            costs: self.costs(costs, 1),
            ..self.step(&chosen, self.width)
        });
        chosen.iter_mut().zip(more).for_each(|(set, more)| set.extend(more));
        chosen
    }

    /// Extend each prefix by one node, taken from `sets` if given.
    fn next(&self, mut prefixes: Sets, sets: Option<&Sets>) -> Sets {
        let length = prefixes[0].len() + 1;
        // The rank is how far behind this prefix the node's place in the present set lies. Nodes that are not
        // in the present set rank last.
        let stranger = self.width + 1 - length;
        let rank = |at: usize, place: Option<usize>| {
            let behind = place.map(|place| (place + 1).saturating_sub(length));
            let far = behind.unwrap_or(stranger).min(stranger);
            if far > 0 && self.pending[at] { far + stranger } else { far }
        };
        let cost = |far: usize| self.prices.moving + far as i64;
        let disturbing = (1..=stranger).map(|far| cost(far) + self.prices.disturbing);
        let costs = [0].into_iter().chain((1..=stranger).map(cost)).chain(disturbing);
        let more = flow::solve(flow::Step {
            choose: 1,
            ranks: self.ranks(sets, rank),
            costs: self.costs(costs, stranger),
            ..self.step(&prefixes, length)
        });
        prefixes.iter_mut().zip(more).for_each(|(set, more)| set.extend(more));
        prefixes
    }

    /// Return the sets ordered: the owner first, then the second place, and so on.
    fn order(&self, (sets, mut prefixes): (Sets, Sets)) -> Sets {
        for _ in 1..self.width {
            prefixes = self.next(prefixes, Some(&sets));
        }
        prefixes
    }

    /// Return the costs by rank. The last `disturbing` ranks apply only to partitions with a pending set;
    /// they are dropped if no set is pending, because fewer ranks mean less work.
    fn costs(&self, costs: impl Iterator<Item = i64>, disturbing: usize) -> Vec<i64> {
        let mut costs: Vec<i64> = costs.collect();
        if !self.pending.contains(&true) {
            costs.truncate(costs.len() - disturbing);
        }
        costs
    }

    /// Return the rank of every node in every partition: by place for nodes in the present set, one common
    /// rank (`None`) for the others, [`flow::NEVER`] for nodes that are not in `sets`.
    fn ranks(&self, sets: Option<&Sets>, rank: impl Fn(usize, Option<usize>) -> usize) -> Vec<u8> {
        let mut ranks = vec![flow::NEVER; self.places.len() * self.nodes];
        for (at, places) in self.places.iter().enumerate() {
            let row = &mut ranks[at * self.nodes..][..self.nodes];
            let stranger = rank(at, None) as u8;
            match sets {
                None => row.fill(stranger),
                Some(sets) => sets[at].iter().for_each(|node| row[*node] = stranger),
            }
            for (place, node) in places.iter().enumerate() {
                if let Some(known) =
                    node.and_then(|node| row.get_mut(node)).filter(|known| **known != flow::NEVER)
                {
                    *known = rank(at, Some(place)) as u8;
                }
            }
        }
        ranks
    }

    fn step<'a>(&'a self, fixed: &'a Sets, length: usize) -> flow::Step<'a> {
        let mut loads = vec![0; self.nodes];
        fixed.iter().flatten().for_each(|node| loads[*node] += 1);
        flow::Step {
            fixed,
            choose: 0,
            ranks: Vec::new(),
            costs: Vec::new(),
            prices: &self.prices,
            loads,
            bounds: self.bounds(length),
            zones: self.zones,
            zone_limit: self.zone_limit,
        }
    }

    fn bounds(&self, length: usize) -> Vec<shares::Bounds> {
        shares::bounds(self.weights, self.zones, self.zone_limit, self.places.len(), length)
    }
}

/// Return the zone of each node as a small number; a node without a zone gets a separate number.
fn zones(nodes: &[&ClaimNode]) -> Vec<usize> {
    let mut names: Vec<Option<&String>> = Vec::new();
    let mut zones = Vec::with_capacity(nodes.len());
    for node in nodes {
        let zone = node.zone.as_ref();
        let known = names.iter().position(|name| zone.is_some() && *name == zone);
        zones.push(known.unwrap_or(names.len()));
        if known.is_none() {
            names.push(zone);
        }
    }
    zones
}

/// Return the maximum number of nodes of one zone in a set: the smallest limit with which a set can be
/// filled.
fn zone_limit(zones: &[usize], width: usize) -> usize {
    let mut sizes = vec![0; zones.len()];
    zones.iter().for_each(|zone| sizes[*zone] += 1);
    let enough = |limit: &usize| sizes.iter().map(|size| size.min(limit)).sum::<usize>() >= width;
    (1..=width).find(enough).unwrap_or(width)
}
