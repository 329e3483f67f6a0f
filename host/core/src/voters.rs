//! Chooses the voters: one with one or two nodes, three with three or four, five with more (R18).
//!
//! The change from the old voters to the new ones is one joint step: until it completes, a majority of both
//! must agree, so the number of voters that change does not matter. The number of voters is always odd: with
//! two voters neither may fail, so a single voter is better. A voter is replaced when it leaves, or when it
//! has been silent for long and a learner that is alive and caught up can replace it. With two nodes the loss
//! of the voter stops changes (not data) until it is back.

use std::collections::BTreeSet;

/// The leader's knowledge of a node that takes part in the cluster.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The node's id.
    pub id: u64,
    /// The failure domain; `None` is not counted as shared with any other node.
    pub zone: Option<String>,
    /// True if the node has nearly all of the log and answered a moment ago.
    pub ready: bool,
    /// True if the node has been silent for so long that it should be replaced.
    pub silent: bool,
    /// True if the node is leaving, and stays only until it has handed off its partitions.
    pub leaves: bool,
}

/// Return the number of nodes that should vote.
fn target(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// Rank a node as a voter; the best has the lowest rank, and `None` is worse than one voter fewer.
fn rank(candidate: &Candidate, votes: bool, leader: u64) -> Option<u8> {
    Some(match candidate {
        Candidate { leaves: false, silent: false, .. } if votes && candidate.id == leader => 0,
        Candidate { leaves: false, silent: false, .. } if votes => 1,
        Candidate { leaves: false, silent: false, ready: true, .. } => 2,
        // A voter that leaves or is silent is better than too few voters: it may return, or be replaced,
        // before another fails.
        Candidate { leaves: true, silent: false, .. } if votes => 3,
        Candidate { leaves: false, .. } if votes => 4,
        _ => return None,
    })
}

/// Return the nodes that should vote, or `None` if they are the present voters. `candidates` are the nodes
/// that take part.
pub fn next_voters(voters: &BTreeSet<u64>, candidates: &[Candidate], leader: u64) -> Option<BTreeSet<u64>> {
    let target = target(candidates.iter().filter(|candidate| !candidate.leaves).count());
    let mut chosen: Vec<&Candidate> = Vec::new();
    while chosen.len() < target {
        // Among candidates of equal rank, prefer a zone without a voter, then the lowest id, which was
        // admitted first.
        let crowd = |candidate: &Candidate| {
            let zone = candidate.zone.as_ref();
            zone.map_or(0, |zone| chosen.iter().filter(|other| other.zone.as_ref() == Some(zone)).count())
        };
        let next = candidates
            .iter()
            .filter(|candidate| chosen.iter().all(|other| other.id != candidate.id))
            .filter_map(|candidate| {
                Some((rank(candidate, voters.contains(&candidate.id), leader)?, candidate))
            })
            .min_by_key(|(rank, candidate)| (*rank, crowd(candidate), candidate.id));
        let Some((_, next)) = next else { break };
        chosen.push(next);
    }
    if chosen.len().is_multiple_of(2) {
        chosen.pop();
    }
    let next: BTreeSet<u64> = chosen.iter().map(|candidate| candidate.id).collect();
    // At least one voter must be alive, to lead a majority of the old voters into the change.
    let alive = chosen.iter().any(|candidate| !candidate.silent);
    (alive && next != *voters).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> Candidate {
        Candidate { id, zone: None, ready: true, silent: false, leaves: false }
    }

    fn lagging(id: u64) -> Candidate {
        Candidate { ready: false, ..node(id) }
    }

    fn silent(id: u64) -> Candidate {
        Candidate { silent: true, ..lagging(id) }
    }

    fn nodes(ids: impl IntoIterator<Item = u64>) -> Vec<Candidate> {
        ids.into_iter().map(node).collect()
    }

    /// Return the final voters. One step reaches them; a second one finds nothing to do.
    fn settle(voters: impl Into<BTreeSet<u64>>, candidates: &[Candidate], leader: u64) -> BTreeSet<u64> {
        let voters = voters.into();
        let next = next_voters(&voters, candidates, leader).unwrap_or(voters);
        assert_eq!(next_voters(&next, candidates, leader), None, "never settles");
        assert_eq!(next.len() % 2, 1, "an even number votes: {next:?}");
        next
    }

    #[test]
    fn voters_grow_from_one_to_three_to_five_as_nodes_join() {
        assert_eq!(settle([0], &nodes(0..1), 0), [0].into());
        assert_eq!(settle([0], &nodes(0..2), 0), [0].into());
        assert_eq!(settle([0], &nodes(0..3), 0), [0, 1, 2].into());
        assert_eq!(settle([0, 1, 2], &nodes(0..4), 0), [0, 1, 2].into());
        assert_eq!(settle([0, 1, 2], &nodes(0..6), 0), [0, 1, 2, 3, 4].into());
    }

    #[test]
    fn three_voters_shrink_to_one_at_once_and_never_to_two() {
        assert_eq!(next_voters(&[0, 1, 2].into(), &nodes([0, 1]), 1), Some([1].into()));
        assert_eq!(next_voters(&[0, 1].into(), &nodes([0, 1]), 0), Some([0].into()));
        assert_eq!(settle([0, 1, 2, 3, 4], &nodes([0, 1, 2, 3]), 3), [0, 1, 3].into());
    }

    #[test]
    fn a_learner_that_lags_is_never_added() {
        assert_eq!(settle([0, 1, 2], &[node(0), node(1), lagging(2), node(3)], 0), [0, 1, 2].into());
        assert_eq!(next_voters(&[0].into(), &[node(0), node(1), lagging(2)], 0), None);
    }

    #[test]
    fn a_leaving_voter_keeps_its_vote_until_it_is_replaced_or_holds_nothing() {
        let leaves = Candidate { leaves: true, ..node(2) };
        let with = |other: Candidate| [node(0), node(1), leaves.clone(), other];
        assert_eq!(settle([0, 1, 2], &with(lagging(3)), 0), [0, 1, 2].into());
        assert_eq!(next_voters(&[0, 1, 2].into(), &with(node(3)), 0), Some([0, 1, 3].into()));
        // A dead node must not keep another from leaving.
        assert_eq!(settle([0, 1, 2], &[node(0), node(1), lagging(3)], 0), [0].into());
    }

    #[test]
    fn the_last_voter_stays_until_another_node_can_take_over() {
        assert_eq!(settle([0], &[lagging(1)], 0), [0].into());
        assert_eq!(settle([0], &nodes([1]), 0), [1].into());
    }

    #[test]
    fn a_silent_voter_is_replaced_only_by_a_live_learner() {
        assert_eq!(settle([0, 1, 2], &[node(0), node(1), silent(2), node(3)], 0), [0, 1, 3].into());
        assert_eq!(settle([0, 1, 2], &[node(0), node(1), silent(2)], 0), [0, 1, 2].into());
        let five = [node(0), node(1), node(2), silent(3), silent(4)];
        assert_eq!(settle([0, 1, 2, 3, 4], &five, 2), [0, 1, 2, 3, 4].into());
    }

    #[test]
    fn the_number_of_voters_after_a_recovery_is_odd() {
        // One of five nodes has started a new lineage; the others return one by one.
        assert_eq!(settle([0], &[node(0), node(1), silent(2), silent(3), silent(4)], 0), [0].into());
        assert_eq!(settle([0], &[node(0), node(1), node(2), silent(3), silent(4)], 0), [0, 1, 2].into());
    }

    #[test]
    fn voters_spread_over_zones() {
        let at = |id, zone: &str| Candidate { zone: Some(zone.into()), ..node(id) };
        let nodes = [at(0, "a"), at(1, "a"), at(2, "a"), at(3, "b"), at(4, "c")];
        assert_eq!(settle([0], &nodes[..4], 0), [0, 1, 3].into());
        assert_eq!(settle([0], &nodes, 0).len(), 5);
    }
}
