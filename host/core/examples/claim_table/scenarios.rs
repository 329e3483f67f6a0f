//! The same changes for every way to claim, and what each makes of them.

use std::collections::BTreeMap;

use annulus_core::claim::{ClaimNode, claim};
use annulus_core::ids::NodeId;
use annulus_core::keyspace::RingSize;
use annulus_core::ring::{Partition, RingTable};

use super::riak::{self, Owners, Version};

/// One change of the members.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A node of this location.
    Join(usize),
    /// The node that came as this one, the founder being 0.
    Leave(usize),
}

/// A founder of location 0 and what happens then.
pub struct Scenario {
    pub name: &'static str,
    /// Do nodes tell their locations?
    pub located: bool,
    pub steps: Vec<Step>,
}

/// What all of them go through.
pub fn scenarios() -> Vec<Scenario> {
    let joins = |count: usize, locations: usize| (1..count).map(move |at| Step::Join(at % locations));
    vec![
        Scenario { name: "1 to 10 nodes", located: false, steps: joins(10, 1).collect() },
        Scenario {
            name: "10 nodes, 5 leave",
            located: false,
            steps: joins(10, 1).chain([3, 0, 7, 9, 4].map(Step::Leave)).collect(),
        },
        Scenario {
            name: "7 nodes, each replaced",
            located: false,
            steps: joins(7, 1).chain((0..7).flat_map(|at| [Step::Join(0), Step::Leave(at)])).collect(),
        },
        Scenario { name: "4 locations, to 12", located: true, steps: joins(12, 4).collect() },
        Scenario {
            name: "5 locations, one leaves",
            located: true,
            steps: joins(10, 5).chain([1, 6].map(Step::Leave)).collect(),
        },
        Scenario {
            name: "uneven locations",
            located: true,
            steps: [1, 2, 3, 0, 1, 0, 0].map(Step::Join).into_iter().collect(),
        },
    ]
}

/// What a table is like, and what it took to get there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Partitions that got another owner.
    pub owners: usize,
    /// Replicas that a node got and had not.
    pub replicas: usize,
    /// Sets with a node twice, though there are nodes enough.
    pub repeated_nodes: usize,
    /// Sets with a location twice, though there are locations enough.
    pub repeated_locations: usize,
    /// The most owned by one node less the fewest.
    pub owner_spread: usize,
    /// The most replicas on one node less the fewest.
    pub replica_spread: usize,
}

/// Who claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Annulus,
    Riak(Version),
}

/// Every way, ours first.
pub const WAYS: [(&str, Way); 3] =
    [("annulus", Way::Annulus), ("riak v2", Way::Riak(Version::V2)), ("riak v4", Way::Riak(Version::V4))];

/// A scenario's steps, one score each.
pub fn run(scenario: &Scenario, way: Way, q: usize, n: usize) -> Vec<Score> {
    let mut nodes: Vec<(usize, usize)> = vec![(0, 0)];
    let mut owners: Owners = vec![0; q];
    let mut sets: Vec<Vec<usize>> = vec![vec![0]; q];
    let mut scores = Vec::new();
    let mut came = 0;
    for step in &scenario.steps {
        let node = match step {
            Step::Join(location) => {
                came += 1;
                nodes.push((came, *location));
                came
            }
            Step::Leave(node) => {
                nodes.retain(|(other, _)| other != node);
                *node
            }
        };
        // Riak knows no locations where nobody tells them: then each node is one.
        let known: Vec<(usize, usize)> =
            nodes.iter().map(|(node, at)| (*node, if scenario.located { *at } else { *node })).collect();
        let new = match way {
            Way::Annulus => ours(&sets, &nodes, scenario.located, n),
            Way::Riak(version) => {
                owners = match step {
                    Step::Join(_) => riak::join(version, &owners, &known, node, n),
                    Step::Leave(_) => riak::leave(version, &owners, &known, node, n),
                };
                (0..q).map(|at| (0..n).map(|next| owners[(at + next) % q]).collect()).collect()
            }
        };
        scores.push(score(&sets, &new, &known, scenario.located, n));
        sets = new;
    }
    scores
}

fn ours(sets: &[Vec<usize>], nodes: &[(usize, usize)], located: bool, n: usize) -> Vec<Vec<usize>> {
    let ids = |set: &Vec<usize>| set.iter().map(|node| NodeId(*node as u64)).collect();
    let ring = RingTable {
        size: RingSize::try_from(sets.len() as u32).expect("a ring's size"),
        epoch: 1,
        partitions: sets.iter().map(|set| Partition::held_by(ids(set), 1)).collect(),
    };
    let node = |(node, location): &(usize, usize)| ClaimNode {
        id: NodeId(*node as u64),
        weight: 1,
        zone: located.then(|| location.to_string()),
    };
    let nodes: Vec<ClaimNode> = nodes.iter().map(node).collect();
    let table = claim(&ring, &nodes, n as u8);
    table.into_iter().map(|set| set.into_iter().map(|node| node.0 as usize).collect()).collect()
}

fn score(old: &[Vec<usize>], new: &[Vec<usize>], nodes: &[(usize, usize)], located: bool, n: usize) -> Score {
    let mut locations: Vec<usize> = nodes.iter().map(|(_, at)| *at).collect();
    locations.sort();
    locations.dedup();
    let location: BTreeMap<usize, usize> = nodes.iter().copied().collect();
    let distinct = |set: &[usize]| {
        let mut set = set.to_vec();
        set.sort();
        set.dedup();
        set
    };
    let mut score = Score::default();
    let mut owned: BTreeMap<usize, usize> = nodes.iter().map(|(node, _)| (*node, 0)).collect();
    let mut held = owned.clone();
    for (old, new) in old.iter().zip(new) {
        let holders = distinct(new);
        score.owners += usize::from(old[0] != new[0]);
        score.replicas += holders.iter().filter(|node| !old.contains(node)).count();
        score.repeated_nodes += usize::from(nodes.len() >= n && holders.len() < n);
        let places: Vec<usize> = new.iter().map(|node| location[node]).collect();
        let apart = locations.len() >= n;
        score.repeated_locations += usize::from(located && apart && distinct(&places).len() < n);
        *owned.entry(new[0]).or_default() += 1;
        holders.into_iter().for_each(|node| *held.entry(node).or_default() += 1);
    }
    let spread = |loads: &BTreeMap<usize, usize>| {
        loads.values().max().copied().unwrap_or(0) - loads.values().min().copied().unwrap_or(0)
    };
    (score.owner_spread, score.replica_spread) = (spread(&owned), spread(&held));
    score
}

/// A whole scenario: what was moved and repeated together, the worst spreads.
pub fn sum(scores: &[Score]) -> Score {
    scores.iter().fold(Score::default(), |sum, step| Score {
        owners: sum.owners + step.owners,
        replicas: sum.replicas + step.replicas,
        repeated_nodes: sum.repeated_nodes + step.repeated_nodes,
        repeated_locations: sum.repeated_locations + step.repeated_locations,
        owner_spread: sum.owner_spread.max(step.owner_spread),
        replica_spread: sum.replica_spread.max(step.replica_spread),
    })
}
