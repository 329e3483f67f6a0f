//! One step of the claim, solved exactly: choose a number of nodes for every partition, none twice.
//!
//! This is a min-cost flow from every partition over its zones and nodes to a sink whose edges have convex
//! costs: far below zero while a node is under its lower bound, zero within its bounds, far above zero
//! beyond. The graph between partitions and nodes is kept folded: edge `i -> j` between two nodes represents
//! the cheapest partition that could have `j` instead of `i`, so a search costs nodes², whatever the number
//! of partitions.
//!
//! Every partition starts on its cheapest nodes, which is optimal for the loads that result. Then shortest
//! paths from node to node are taken for as long as one lowers the total cost. After each path the choice is
//! optimal for the loads that result (successive shortest paths), and the least cost as a function of the
//! loads is M-convex: if no single exchange between two nodes helps, nothing does. Among paths of equal cost
//! the one with the fewest edges is taken. None of its exchanges conflicts with another: if two did, the
//! detour between them could be left out.

use super::shares::Bounds;

/// Prices of what a choice should avoid. Each price is above the sum of all lower kinds over every set of
/// a ring. For the largest ring, 4096 sets of 7, the prices just fit into an `i64`.
pub(super) struct Prices {
    /// Added to `moving` for a replica that is new in a partition whose transfer is pending.
    pub disturbing: i64,
    /// Price of a replica that is new.
    pub moving: i64,
    /// Price of one partition out of bounds.
    unbalanced: i64,
}

impl Prices {
    /// Preferences between places stay below this value.
    pub(super) const PREFERENCES: i64 = 8;

    pub(super) fn new(partitions: usize, width: usize) -> Self {
        let choices = (partitions * width) as i64 + 1;
        let disturbing = choices * Self::PREFERENCES;
        let moving = choices * disturbing;
        Self { disturbing, moving, unbalanced: choices * 2 * moving }
    }
}

/// Each of the first `STEEP` partitions out of bounds costs more than the one before, so that the node
/// farthest out of bounds is served first.
const STEEP: i64 = 4;
/// Costs are shifted left by this many bits to leave room for the number of edges of a path.
const EDGES_BITS: u32 = 12;
const NO_EDGE: i64 = i64::MAX;
/// The rank of a node that a partition may not have.
pub(super) const NEVER: u8 = u8::MAX;

/// The choice to make, and its costs.
pub(super) struct Step<'a> {
    /// Number of nodes to choose for each partition.
    pub choose: usize,
    /// `ranks[partition * nodes + node]`: the cost of choosing the node, as an index into `costs`, or
    /// [`NEVER`].
    pub ranks: Vec<u8>,
    /// Cost of each rank.
    pub costs: Vec<i64>,
    pub prices: &'a Prices,
    /// The nodes that each partition already has; they stay.
    pub fixed: &'a [Vec<usize>],
    /// Number of partitions that each node holds already.
    pub loads: Vec<i64>,
    /// Bounds of each node's load, including the partitions that it is chosen for.
    pub bounds: Vec<Bounds>,
    /// Zone of each node.
    pub zones: &'a [usize],
    /// The maximum number of nodes of one zone for a partition.
    pub zone_limit: usize,
}

/// Choose the nodes for each partition at the least cost.
pub(super) fn solve(step: Step<'_>) -> Vec<Vec<usize>> {
    let mut choice = Choice::cheapest(step);
    while let Some(path) = choice.best_path() {
        choice.take(&path);
    }
    choice.chosen
}

struct Choice<'a> {
    step: Step<'a>,
    nodes: usize,
    chosen: Vec<Vec<usize>>,
    /// `counts[((i * nodes) + j) * ranks² + rank of i * ranks + rank of j]`: the number of partitions that
    /// have `i` and could have `j` instead.
    counts: Vec<u16>,
    /// `edges[i * nodes + j]`: the least cost of such an exchange, or [`NO_EDGE`].
    edges: Vec<i64>,
    /// The results of [`Choice::open`] for one partition: its number of nodes in each zone, and the nodes
    /// that it could have besides, with zone and rank.
    in_zone: Vec<usize>,
    others: Vec<(usize, usize, usize)>,
    /// Where to start looking for the next partition to change. It advances by about the golden section (an
    /// odd step, so that it reaches every partition), which spreads a node's new partitions around the ring.
    cursor: usize,
}

impl<'a> Choice<'a> {
    /// Put every partition on its cheapest nodes, the least loaded first among those of equal cost.
    fn cheapest(step: Step<'a>) -> Self {
        let (nodes, classes) = (step.bounds.len(), step.costs.len());
        let counts = vec![0; nodes * nodes * classes * classes];
        let edges = vec![NO_EDGE; nodes * nodes];
        let chosen = vec![Vec::with_capacity(step.choose); step.fixed.len()];
        let in_zone = vec![0; nodes];
        let others = Vec::with_capacity(nodes);
        let mut choice = Self { step, nodes, chosen, counts, edges, in_zone, others, cursor: 0 };
        for partition in 0..choice.step.fixed.len() {
            choice.open(partition);
            for _ in 0..choice.step.choose {
                let fits = |&at: &usize| choice.in_zone[choice.others[at].1] < choice.step.zone_limit;
                let key = |at: &usize| {
                    let (node, _, rank) = choice.others[*at];
                    (rank, choice.adding(node), choice.step.loads[node], node)
                };
                // Greedy is optimal here: sets with a limit per zone form a matroid.
                let Some(at) = (0..choice.others.len()).filter(fits).min_by_key(key) else { break };
                let (node, zone, _) = choice.others.swap_remove(at);
                choice.chosen[partition].push(node);
                choice.step.loads[node] += 1;
                choice.in_zone[zone] += 1;
            }
            choice.count(partition, true);
        }
        choice
    }

    fn rank(&self, partition: usize, node: usize) -> u8 {
        self.step.ranks[partition * self.nodes + node]
    }

    /// Return the cost of an exchange, or `None` if it is not allowed.
    fn exchange(&self, partition: usize, i: usize, j: usize) -> Option<i64> {
        let zones = self.step.zones;
        if !self.chosen[partition].contains(&i) || self.rank(partition, j) == NEVER {
            return None;
        }
        let others =
            || self.step.fixed[partition].iter().chain(&self.chosen[partition]).filter(|node| **node != i);
        let in_zone = others().filter(|node| zones[**node] == zones[j]).count();
        let may = in_zone < self.step.zone_limit && others().all(|node| *node != j);
        let cost = |node| self.step.costs[usize::from(self.rank(partition, node))];
        may.then(|| cost(j) - cost(i))
    }

    /// Return the cost of one more partition on a node.
    fn adding(&self, node: usize) -> i64 {
        let (load, Bounds { low, high }) = (self.step.loads[node], self.step.bounds[node]);
        self.step.prices.unbalanced * ((load + 1 - high).clamp(0, STEEP) - (low - load).clamp(0, STEEP))
    }

    /// Return the cost of one partition less on a node.
    fn removing(&self, node: usize) -> i64 {
        let (load, Bounds { low, high }) = (self.step.loads[node], self.step.bounds[node]);
        self.step.prices.unbalanced * ((low + 1 - load).clamp(0, STEEP) - (load - high).clamp(0, STEEP))
    }

    /// Compute a partition's number of nodes in each zone, and the nodes that it could have besides.
    fn open(&mut self, partition: usize) {
        let ranks = &self.step.ranks[partition * self.nodes..][..self.nodes];
        let has = || self.step.fixed[partition].iter().chain(&self.chosen[partition]).copied();
        self.in_zone.fill(0);
        has().for_each(|node| self.in_zone[self.step.zones[node]] += 1);
        self.others.clear();
        let free =
            ranks.iter().enumerate().filter(|(node, rank)| **rank != NEVER && !has().any(|has| has == *node));
        self.others.extend(free.map(|(node, rank)| (node, self.step.zones[node], usize::from(*rank))));
    }

    /// Add a partition's possible exchanges to the counts, or remove them.
    fn count(&mut self, partition: usize, come: bool) {
        let (classes, nodes, limit) = (self.step.costs.len(), self.nodes, self.step.zone_limit);
        // This is the hottest loop of the claim; everything it needs of the partition is computed beforehand.
        self.open(partition);
        let ranks = &self.step.ranks[partition * nodes..][..nodes];
        for &i in &self.chosen[partition] {
            let (zone, rank) = (self.step.zones[i], usize::from(ranks[i]));
            for &(j, other_zone, other_rank) in &self.others {
                if self.in_zone[other_zone] - usize::from(other_zone == zone) >= limit {
                    continue;
                }
                let class = rank * classes + other_rank;
                let counts = &mut self.counts[(i * nodes + j) * classes * classes..][..classes * classes];
                counts[class] = if come { counts[class] + 1 } else { counts[class] - 1 };
                if counts[class] != u16::from(come) {
                    continue;
                }
                let costs = &self.step.costs;
                let cost = costs[other_rank] - costs[rank];
                let edge = &mut self.edges[i * nodes + j];
                if come {
                    *edge = cost.min(*edge);
                } else if cost == *edge {
                    let present = (0..counts.len()).filter(|class| counts[*class] > 0);
                    let cost = present.map(|class| costs[class % classes] - costs[class / classes]);
                    *edge = cost.min().unwrap_or(NO_EDGE);
                }
            }
        }
    }

    /// Return the path of exchanges that lowers the total cost the most, if one does. The first node of the
    /// path loses a partition, the last one gains one.
    fn best_path(&self) -> Option<Vec<usize>> {
        let mut costs: Vec<i64> = (0..self.nodes).map(|node| self.removing(node) << EDGES_BITS).collect();
        let mut before: Vec<Option<usize>> = vec![None; self.nodes];
        let mut changed = vec![true; self.nodes];
        // This is the Bellman-Ford algorithm. The graph has no negative cycle, so the loop ends within
        // `nodes` rounds.
        while changed.contains(&true) {
            for i in 0..self.nodes {
                if !std::mem::take(&mut changed[i]) {
                    continue;
                }
                for (j, edge) in self.edges[i * self.nodes..][..self.nodes].iter().enumerate() {
                    if *edge == NO_EDGE {
                        continue;
                    }
                    let cost = costs[i] + (edge << EDGES_BITS) + 1;
                    if cost < costs[j] {
                        (costs[j], before[j], changed[j]) = (cost, Some(i), true);
                    }
                }
            }
        }
        let whole = |node: &usize| (costs[*node] >> EDGES_BITS) + self.adding(*node);
        let last = (0..self.nodes).filter(|node| before[*node].is_some()).min_by_key(whole)?;
        if whole(&last) >= 0 {
            return None;
        }
        let mut path: Vec<usize> = std::iter::successors(Some(last), |node| before[*node]).collect();
        path.reverse();
        Some(path)
    }

    /// Apply the exchanges of a path.
    fn take(&mut self, path: &[usize]) {
        // Find all exchanges before making any, because each is an edge of the present graph.
        let find = |hop: &[usize]| (self.cheapest_exchange(hop[0], hop[1]), hop[0], hop[1]);
        let changes: Vec<_> = path.windows(2).map(find).collect();
        let partitions = self.step.fixed.len();
        self.cursor = (self.cursor + ((partitions * 5 / 8) | 1)) % partitions;
        for (partition, from, to) in changes {
            self.count(partition, false);
            let chosen = self.chosen[partition].iter_mut().find(|node| **node == from);
            *chosen.expect("no two exchanges of a path meet") = to;
            self.step.loads[from] -= 1;
            self.step.loads[to] += 1;
            self.count(partition, true);
        }
    }

    fn cheapest_exchange(&self, i: usize, j: usize) -> usize {
        let cheapest = Some(self.edges[i * self.nodes + j]);
        let mut around = (self.cursor..self.step.fixed.len()).chain(0..self.cursor);
        let found = around.find(|partition| self.exchange(*partition, i, j) == cheapest);
        found.expect("an edge exists for as long as a partition makes it")
    }
}
