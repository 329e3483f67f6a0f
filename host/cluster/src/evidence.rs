//! Evidence of peers about a starting node's disk, and the judgement of it. The judgement is free of I/O.
//!
//! A directory that was restored from an older copy, or copied and started elsewhere, starts with a number
//! that peers have seen already. A directory that was copied since its last start has a shorter log than the
//! node once acknowledged to the leader, or sent as the leader.

use std::cmp::Ordering;

use annulus_core::ids::{NodeId, Start};
use annulus_core::state::Lineage;
use serde::{Deserialize, Serialize};

use super::raft::{LogId, Vote};

/// Message of a starting node to its peers. In the first build, the message was a [`Start`], without
/// `only_asked`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Starting {
    number: u64,
    id: u64,
    /// True if the peer must not record this start, because it is not known yet whether its disk is the
    /// newest.
    #[serde(default)]
    pub(super) only_asked: bool,
}

impl Starting {
    pub(super) fn new(Start { number, id }: Start, only_asked: bool) -> Self {
        Self { number, id, only_asked }
    }

    pub(super) fn start(self) -> Start {
        Start { number: self.number, id: self.id }
    }
}

/// A peer's reply: its knowledge of the node that starts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct StartEvidence {
    /// The newest start of the node that the peer has seen, other than the one in question.
    pub(super) before: Option<Start>,
    /// The peer's lineage.
    pub(super) lineage: Lineage,
    /// If the peer leads: the index up to which the node has acknowledged the log.
    pub(super) matched: Option<u64>,
    /// True if the peer leads a majority.
    pub(super) leads: bool,
    /// The peer's vote.
    #[serde(default)]
    pub(super) vote: Option<Vote>,
    /// The last entry of the peer's log.
    #[serde(default)]
    pub(super) last: Option<LogId>,
    /// The last entry that the peer knows to be committed.
    #[serde(default)]
    pub(super) committed: Option<LogId>,
    /// True if the node was removed, by the peer's state.
    #[serde(default)]
    pub(super) removed: bool,
    /// True if the node is the only voter, as far as the peer knows.
    #[serde(default)]
    pub(super) votes_alone: bool,
}

/// Contents of a starting node's disk, before its Raft takes part.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskState {
    pub(super) me: NodeId,
    pub(super) start: Start,
    pub(super) lineage: Lineage,
    pub(super) last: Option<LogId>,
    pub(super) vote: Option<Vote>,
}

/// Evidence of several peers, none of which has an objection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Combined {
    /// The last entry that one of them knows to be committed.
    pub(super) committed: Option<LogId>,
    /// True if the node is the only voter, by a peer that knows that entry. The other peers may not know of a
    /// later change of voters.
    pub(super) votes_alone: bool,
}

impl Combined {
    pub(super) fn add(&mut self, known: &StartEvidence) {
        match known.committed.cmp(&self.committed) {
            Ordering::Greater => {
                *self = Self { committed: known.committed, votes_alone: known.votes_alone };
            }
            Ordering::Equal => self.votes_alone |= known.votes_alone,
            Ordering::Less => {}
        }
    }
}

/// Return a reason against a start, given the newest other start that has been seen.
pub(super) fn against(start: Start, before: Option<Start>) -> Option<String> {
    match before {
        Some(before) if before.number > start.number => {
            Some(format!("this is its start {}, and start {} has been seen", start.number, before.number))
        }
        Some(before) if before.number == start.number && before.id != start.id => {
            Some(format!("start {} has been seen of another copy of it", start.number))
        }
        _ => None,
    }
}

/// Return a reason against a disk; `None` if the evidence of a peer holds no objection.
pub(super) fn objection(found: &DiskState, known: &StartEvidence) -> Option<String> {
    if let Some(why) = against(found.start, known.before) {
        return Some(why);
    }
    // A peer that knows of no election has a vote of term 0, which names node 0 and was never cast.
    let of_me = |vote: &Vote| vote.leader_id.term > 0 && vote.leader_id.node_id == found.me.0;
    if known.lineage > found.lineage && known.vote.as_ref().is_some_and(of_me) {
        return Some(
            "it has stood for election since the cluster was recovered, of which this disk knows nothing"
                .into(),
        );
    }
    if known.lineage != found.lineage {
        return None;
    }
    let last = found.last.map(|last| last.index);
    if let Some(matched) = known.matched
        && last < Some(matched)
    {
        let last = last.unwrap_or(0);
        return Some(format!("its log ends at entry {last}, and it has acknowledged entry {matched}"));
    }
    // A leader has an entry on its own disk before it sends it, and keeps it at least until it votes for somebody else.
    let leads = |vote: Vote| of_me(&vote).then_some(vote.leader_id.term);
    if let (Some(term), Some(sent)) = (found.vote.and_then(leads), known.last)
        && (sent.leader_id.term, sent.leader_id.node_id) == (term, found.me.0)
        && found.last < Some(sent)
    {
        let last = last.unwrap_or(0);
        return Some(format!(
            "its log ends at entry {last}, and it has sent entry {} as the leader",
            sent.index
        ));
    }
    // A node stores its vote for itself before it asks others for theirs.
    let term = |vote: &Vote| vote.leader_id.term;
    let own = found.vote.as_ref().map(term);
    known.vote.filter(|vote| of_me(vote) && own < Some(term(vote))).map(|vote| {
        let (own, term) = (own.unwrap_or(0), term(&vote));
        format!("its last vote is of term {own}, and it stood for election in term {term}")
    })
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    #[test]
    fn the_peers_that_know_the_newest_entry_know_who_votes() {
        let entry = |index| Some(LogId::new(CommittedLeaderId::new(3, 7), index));
        let known = |index, votes_alone| StartEvidence {
            before: None,
            lineage: Lineage::default(),
            matched: None,
            leads: false,
            vote: None,
            last: None,
            committed: entry(index),
            removed: false,
            votes_alone,
        };
        let combined = |heard: &[StartEvidence]| {
            let mut combined = Combined::default();
            heard.iter().for_each(|known| combined.add(known));
            (combined.committed, combined.votes_alone)
        };
        let (old, new, alone) = (known(5, true), known(9, false), known(9, true));
        for heard in [[old, new], [new, old]] {
            assert_eq!(combined(&heard), (entry(9), false));
        }
        for heard in [[known(5, false), alone], [alone, new], [new, alone]] {
            assert_eq!(combined(&heard), (entry(9), true));
        }
    }

    #[test]
    fn a_disk_is_older_by_its_number_by_anothers_or_by_its_log() {
        let start = Start { number: 5, id: 1 };
        let lineage = Lineage::default();
        let entry = |index| Some(LogId::new(CommittedLeaderId::new(3, 7), index));
        let found = DiskState { me: NodeId(7), start, lineage, last: entry(10), vote: Some(Vote::new(3, 7)) };
        let known = StartEvidence {
            before: None,
            lineage,
            matched: None,
            leads: true,
            vote: None,
            last: None,
            committed: None,
            removed: false,
            votes_alone: false,
        };
        let before = |number, id| StartEvidence { before: Some(Start { number, id }), ..known };
        let speaks = |known: &StartEvidence| objection(&found, known).is_some();
        assert!(!speaks(&known));
        assert!(!speaks(&before(4, 9)), "the start before this one");
        assert!(speaks(&before(5, 9)), "a copy");
        assert!(speaks(&before(6, 9)), "an older disk");
        assert!(!speaks(&StartEvidence { matched: Some(10), ..known }));
        assert!(speaks(&StartEvidence { matched: Some(11), ..known }));
        let elsewhere = Lineage { number: 1, id: 1 };
        assert!(!speaks(&StartEvidence { matched: Some(11), lineage: elsewhere, ..known }), "another log");
        let has = |last, lineage| StartEvidence { last, lineage, ..known };
        assert!(!speaks(&has(entry(10), lineage)));
        assert!(speaks(&has(entry(11), lineage)), "it led, and has lost an entry");
        assert!(!speaks(&has(entry(11), elsewhere)), "another log");
        let other = Some(LogId::new(CommittedLeaderId::new(4, 8), 11));
        assert!(!speaks(&has(other, lineage)), "of a later leader");
        let voted = DiskState { vote: Some(Vote::new(4, 8)), ..found };
        let replaced = objection(&voted, &has(entry(11), lineage));
        assert_eq!(replaced, None, "a later leader may have replaced the end of its log");
        assert!(!speaks(&StartEvidence { vote: Some(Vote::new(3, 7)), ..known }));
        assert!(!speaks(&StartEvidence { vote: Some(Vote::new(4, 8)), ..known }), "for somebody else");
        assert!(speaks(&StartEvidence { vote: Some(Vote::new(4, 7)), ..known }), "it has stood since");
        assert!(
            speaks(&StartEvidence { vote: Some(Vote::new(1, 7)), lineage: elsewhere, ..known }),
            "after a recovery"
        );
        assert!(
            !speaks(&StartEvidence { vote: Some(Vote::new(1, 8)), lineage: elsewhere, ..known }),
            "somebody did"
        );
        let first = DiskState { me: NodeId(0), vote: None, ..found };
        for lineage in [lineage, elsewhere] {
            let unheard = StartEvidence { vote: Some(Vote::new(0, 0)), lineage, ..known };
            assert!(objection(&first, &unheard).is_none(), "the peer knows of no candidate");
        }
    }
}
