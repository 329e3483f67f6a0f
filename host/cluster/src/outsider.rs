//! The votes of a node that the newest change of voters leaves out.
//!
//! A leader appends the entry that ends a change of voters, and may end itself before any of the new voters has
//! the entry. The new voters then know only of the change in progress, and need votes of the old ones, whose
//! log is longer than theirs. In Raft (Ongaro's thesis, 4.2.2) such an old voter stands for election itself and
//! passes the entry on. openraft lets a node stand only if its own newest membership entry makes it a voter,
//! so no node could ever be elected again.
//!
//! So a node that its newest membership entry, E, leaves out ignores E and everything after E when it is asked
//! for a vote. Nothing is lost by that: E and whatever was committed after it is on a majority of the new
//! voters. The candidate cannot know E, or it would not ask this node, so its own newest change of voters is
//! the one before E, J, which needs a majority of the new voters as well: they compare logs by the full rule.
//! Entries that were committed before J are in the log of a candidate that has J, which is checked here.

use annulus_core::ids::NodeId;
use openraft::raft::VoteRequest;
use openraft::{CommittedLeaderId, LeaderId, LogId};

use super::raft::Raft;

/// Return a request for this node's vote in the form that its Raft is to decide on.
pub(super) async fn weigh(me: NodeId, raft: &Raft, mut request: VoteRequest<u64>) -> VoteRequest<u64> {
    let before = raft.with_raft_state(move |state| {
        let (newest, before) = (state.membership_state.effective(), state.membership_state.committed());
        let votes = newest.membership().voter_ids().any(|id| id == me.0);
        (!votes && before.log_id() < newest.log_id()).then(|| *before.log_id())
    });
    // An error: this Raft has ended, and replies so to the request itself.
    if let Ok(Some(before)) = before.await
        && before <= request.last_log_id
    {
        let LeaderId { term, node_id } = request.vote.leader_id;
        tracing::info!(
            candidate = node_id,
            "the newest change of voters leaves this node out, and counts for nothing in its vote"
        );
        // No log that the candidate's term may follow has a later entry than this one.
        request.last_log_id = Some(LogId::new(CommittedLeaderId::new(term, node_id), u64::MAX));
    }
    request
}
