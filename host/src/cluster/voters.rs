//! Who votes: one node of one or two, three of three or four, five of more (R18).
//!
//! Step by step from what is to what should be: a voter is added before the one that it replaces
//! is dropped; one becomes three in one step, because two stop as soon as either does. A voter is replaced when it leaves, or when it has been silent for
//! [`SILENT_VOTER`] and a learner that is alive and has caught up can take its place. With two
//! nodes the loss of the voter stops changes (not data) until it is back.

use std::collections::BTreeSet;
use std::time::Duration;

/// A voter silent for this long is replaced, if somebody can.
pub const SILENT_VOTER: Duration = Duration::from_secs(30);

/// What a leader knows of a node that is to stay in the cluster.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who.
    pub id: u64,
    /// Failure domain.
    pub zone: Option<String>,
    /// Has it nearly all of the log, and answered a moment ago?
    pub ready: bool,
    /// Has it been silent for [`SILENT_VOTER`]?
    pub silent: bool,
}

/// The next change of the voters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These learners should vote, from the same entry on.
    Add(BTreeSet<u64>),
    /// This voter should be a learner.
    Remove(u64),
}

/// How many should vote.
fn target(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// The next step, if one is needed and possible. `candidates` are the nodes that stay.
pub fn next_step(voters: &BTreeSet<u64>, candidates: &[Candidate], leader: u64) -> Option<Step> {
    let stays = |id: u64| candidates.iter().find(|candidate| candidate.id == id);
    let target = target(candidates.len());
    let sound: Vec<&Candidate> =
        candidates.iter().filter(|candidate| voters.contains(&candidate.id) && !candidate.silent).collect();

    let mut added: Vec<&Candidate> = Vec::new();
    while sound.len() + added.len() < target {
        let spare = candidates.iter().filter(|candidate| {
            let votes = voters.contains(&candidate.id) || added.iter().any(|other| other.id == candidate.id);
            candidate.ready && !candidate.silent && !votes
        });
        // A zone without a voter first, then the node that has been here longest.
        let crowd = |candidate: &Candidate| {
            candidate.zone.as_ref().map_or(0, |zone| {
                sound.iter().chain(&added).filter(|voter| voter.zone.as_ref() == Some(zone)).count()
            })
        };
        let Some(best) = spare.min_by_key(|candidate| (crowd(candidate), candidate.id)) else { break };
        added.push(best);
    }
    // Of two voters neither may fail: one alone is better until there are three.
    let pair = target > 2 && voters.len() + added.len() == 2;
    if !added.is_empty() && !pair {
        return Some(Step::Add(added.iter().map(|candidate| candidate.id).collect()));
    }

    // Somebody must be left to vote.
    let removable = |id: u64| sound.iter().any(|voter| voter.id != id);
    let leaving = voters.iter().copied().filter(|id| stays(*id).is_none());
    // The leader last: its going costs an election.
    if let Some(id) = leaving.min_by_key(|id| *id == leader) {
        return removable(id).then_some(Step::Remove(id));
    }
    if voters.len() <= target {
        return None;
    }
    let crowded = |id: u64| {
        let zone = stays(id).and_then(|candidate| candidate.zone.as_ref());
        zone.map_or(0, |zone| sound.iter().filter(|voter| voter.zone.as_ref() == Some(zone)).count())
    };
    voters
        .iter()
        .copied()
        .filter(|id| *id != leader)
        .max_by_key(|id| (stays(*id).is_some_and(|candidate| candidate.silent), crowded(*id), *id))
        .filter(|id| removable(*id))
        .map(Step::Remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> Candidate {
        Candidate { id, zone: None, ready: true, silent: false }
    }

    fn nodes(ids: impl IntoIterator<Item = u64>) -> Vec<Candidate> {
        ids.into_iter().map(node).collect()
    }

    /// Takes every step; says who votes in the end.
    fn settle(voters: impl Into<BTreeSet<u64>>, candidates: &[Candidate], leader: u64) -> BTreeSet<u64> {
        let mut voters = voters.into();
        for _ in 0..20 {
            match next_step(&voters, candidates, leader) {
                None => return voters,
                Some(Step::Add(ids)) => {
                    ids.into_iter().for_each(|id| assert!(voters.insert(id), "{id} votes"))
                }
                Some(Step::Remove(id)) => assert!(voters.remove(&id), "{id} does not vote"),
            }
            assert!(!voters.is_empty());
        }
        panic!("never settles: {voters:?}");
    }

    #[test]
    fn one_then_three_then_five_as_nodes_join() {
        assert_eq!(settle([0], &nodes(0..1), 0), [0].into());
        assert_eq!(settle([0], &nodes(0..2), 0), [0].into());
        assert_eq!(settle([0], &nodes(0..3), 0), [0, 1, 2].into());
        assert_eq!(settle([0, 1, 2], &nodes(0..4), 0), [0, 1, 2].into());
        assert_eq!(settle([0, 1, 2], &nodes(0..6), 0), [0, 1, 2, 3, 4].into());
    }

    #[test]
    fn a_learner_that_lags_is_never_added() {
        let lagging = Candidate { ready: false, ..node(2) };
        assert_eq!(settle([0, 1, 2], &[node(0), node(1), lagging.clone(), node(3)], 0), [0, 1, 2].into());
        assert_eq!(settle([0, 1], &[node(0), node(1), lagging], 0), [0, 1].into());
    }

    #[test]
    fn one_voter_becomes_three_at_once_since_two_stop_with_either() {
        assert_eq!(next_step(&[0].into(), &nodes(0..3), 0), Some(Step::Add([1, 2].into())));
        let lagging = Candidate { ready: false, ..node(2) };
        assert_eq!(next_step(&[0].into(), &[node(0), node(1), lagging], 0), None);
    }

    #[test]
    fn a_leaving_voter_is_replaced_before_it_is_dropped_and_the_leader_goes_last() {
        assert_eq!(next_step(&[0, 1, 2].into(), &nodes([0, 1, 3]), 0), Some(Step::Add([3].into())));
        assert_eq!(next_step(&[0, 1, 2, 3].into(), &nodes([0, 1, 3]), 0), Some(Step::Remove(2)));
        assert_eq!(settle([0, 1, 2], &nodes([1, 2, 3]), 0), [1, 2, 3].into());
        assert_eq!(settle([0, 1, 2], &nodes([1, 2]), 0).len(), 1);
    }

    #[test]
    fn the_last_voter_stays_until_somebody_can_take_over() {
        let lagging = Candidate { ready: false, ..node(1) };
        assert_eq!(settle([0], &[lagging], 0), [0].into());
        assert_eq!(settle([0], &nodes([1]), 0), [1].into());
    }

    #[test]
    fn a_silent_voter_is_swapped_only_for_a_live_learner() {
        let silent = Candidate { ready: false, silent: true, ..node(2) };
        let four = [node(0), node(1), silent.clone(), node(3)];
        assert_eq!(settle([0, 1, 2], &four, 0), [0, 1, 3].into());
        let three = [node(0), node(1), silent];
        assert_eq!(settle([0, 1, 2], &three, 0), [0, 1, 2].into());
    }

    #[test]
    fn voters_spread_over_zones() {
        let at = |id, zone: &str| Candidate { zone: Some(zone.into()), ..node(id) };
        let nodes = [at(0, "a"), at(1, "a"), at(2, "a"), at(3, "b"), at(4, "c")];
        assert_eq!(settle([0], &nodes[..4], 0), [0, 1, 3].into());
        assert_eq!(settle([0], &nodes, 0).len(), 5);
    }
}
