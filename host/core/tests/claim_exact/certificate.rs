//! Proves that a table moves the fewest replicas, without solving anything.
//!
//! A table is a flow: every partition sends one unit for each of its replicas, over a zone (at most its
//! limit), to a node, to a sink that takes from each node an amount within its bounds; a unit costs one if
//! its replica is new. A flow is of least cost exactly if its residual graph has no cycle of negative cost;
//! this module looks for such a cycle.

use annulus_core::ids::NodeId;

use super::problem::{Problem, Table};

/// The cost of a node for a partition; `None` if the partition may not have the node.
pub type Cost<'a> = &'a dyn Fn(usize, usize) -> Option<i64>;

/// Return true if no table within `bounds` and the zone limit costs less.
pub fn is_cheapest(problem: &Problem, table: &Table, bounds: &[(usize, usize)], cost: Cost<'_>) -> bool {
    let (q, n) = (table.len(), problem.nodes.len());
    let (zones, limit) = (problem.zones(), problem.zone_limit());
    // Zones are omitted where they do not bind: if each node is a separate zone, or if the limit is at least
    // the size of a set. Otherwise the graph has one vertex for each pair of partition and zone.
    let own = (0..n).all(|at| zones[at] == at) || limit >= problem.set();
    let (partition, node) = (|p: usize| p, |at: usize| q + at);
    let (sink, pair) = (q + n, |p: usize, zone: usize| q + n + 1 + p * n + zone);
    let mut arcs: Vec<(usize, usize, i64)> = Vec::new();
    let (mut loads, mut most) = (vec![0; n], 1);
    for (p, set) in table.iter().enumerate() {
        let mut in_zone = vec![0; n];
        let has: Vec<usize> = set.iter().map(|id| problem.at(*id).unwrap()).collect();
        for at in 0..n {
            let from = if own { partition(p) } else { pair(p, zones[at]) };
            let Some(cost) = cost(p, at) else { continue };
            most = most.max(cost);
            if has.contains(&at) {
                arcs.push((node(at), from, -cost));
                in_zone[zones[at]] += 1;
                loads[at] += 1;
            } else {
                arcs.push((from, node(at), cost));
            }
        }
        for zone in (0..n).filter(|at| !own && zones[*at] == *at) {
            if in_zone[zone] < limit {
                arcs.push((partition(p), pair(p, zone), 0));
            }
            if in_zone[zone] > 0 {
                arcs.push((pair(p, zone), partition(p), 0));
            }
        }
    }
    for (at, (low, high)) in bounds.iter().enumerate() {
        assert!((*low..=*high).contains(&loads[at]), "the table is not within its bounds");
        if loads[at] < *high {
            arcs.push((node(at), sink, 0));
        }
        if loads[at] > *low {
            arcs.push((sink, node(at), 0));
        }
    }
    // A path without a cycle gains no more than the total that is paid now.
    let paid: i64 = arcs.iter().map(|(_, _, cost)| (-cost).max(0)).sum();
    let mut distance = vec![0i64; if own { sink + 1 } else { pair(q, 0) }];
    loop {
        let mut changed = false;
        for (from, to, cost) in &arcs {
            if distance[*from] + cost < distance[*to] {
                distance[*to] = distance[*from] + cost;
                changed = true;
                if distance[*to] < -paid {
                    return false;
                }
            }
        }
        if !changed {
            return true;
        }
    }
}

/// The cost of one move; no count of disturbed transfers reaches it.
const MOVE: i64 = 1 << 20;

/// Return true if no equally balanced table moves fewer replicas, or as few with fewer of them in partitions
/// whose set is pending.
pub fn moves_the_fewest_replicas(problem: &Problem, table: &Table) -> bool {
    let cost = |p: usize, at: usize| {
        let stays = problem.old[p].contains(&problem.nodes[at].id);
        Some(if stays { 0 } else { MOVE + i64::from(problem.pending[p]) })
    };
    is_cheapest(problem, table, &problem.bounds(problem.set()), &cost)
}

/// Return true if no choice of owners from these sets moves fewer owners, or as few with fewer of them in
/// partitions whose set is pending.
pub fn moves_the_fewest_owners_of_its_sets(problem: &Problem, table: &Table) -> bool {
    let owners: Table = table.iter().map(|set| vec![set[0]]).collect();
    let cost = |p: usize, at: usize| {
        let id: NodeId = problem.nodes[at].id;
        let stays = problem.old[p].first() == Some(&id);
        table[p].contains(&id).then(|| if stays { 0 } else { MOVE + i64::from(problem.pending[p]) })
    };
    is_cheapest(problem, &owners, &problem.bounds(1), &cost)
}
