//! The same membership changes for every claim algorithm, and the score of the result.

use std::collections::BTreeMap;

use annulus_core::claim::{ClaimNode, claim};
use annulus_core::ids::NodeId;
use annulus_core::keyspace::RingSize;
use annulus_core::ring::{Partition, RingTable};

use super::riak::{self, Owners, Version};

/// One change of the members.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A node at this location joins.
    Join(usize),
    /// The node that joined as this number leaves; the founder is 0.
    Leave(usize),
}

/// A founder at location 0 and the steps that follow.
pub struct Scenario {
    pub name: &'static str,
    /// Whether nodes announce their locations.
    pub located: bool,
    pub steps: Vec<Step>,
}

/// Return the scenarios that every algorithm goes through.
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

/// The quality of a table, and the moves that led to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Partitions that got another owner.
    pub owners: usize,
    /// Replicas on nodes that did not have them before.
    pub replicas: usize,
    /// Sets that repeat a node although there are enough nodes.
    pub repeated_nodes: usize,
    /// Sets that repeat a location although there are enough locations.
    pub repeated_locations: usize,
    /// Difference between the most and the fewest partitions owned by one node.
    pub owner_spread: usize,
    /// Difference between the most and the fewest replicas on one node.
    pub replica_spread: usize,
}

/// The claim algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Annulus,
    Riak(Version),
}

/// Every algorithm, Annulus first.
pub const WAYS: [(&str, Way); 3] =
    [("annulus", Way::Annulus), ("riak v2", Way::Riak(Version::V2)), ("riak v4", Way::Riak(Version::V4))];

/// Run a scenario and return the score of each step.
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
        // Without announced locations Riak treats each node as a separate location.
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

/// Combine the scores of a scenario: moves and repetitions are summed, spreads are the largest.
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
