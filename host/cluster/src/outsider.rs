//! The votes of a node that the newest change of voters leaves out.
//!
//! A leader appends the entry that ends a change of voters, and may stop before any of the new voters has the
//! entry. The new voters then know only of the change in progress, and need votes of the old ones, whose log
//! is longer than theirs. In Raft (Ongaro's thesis, 4.2.2) such an old voter stands for election itself and
//! passes the entry on. openraft lets a node stand only if its newest membership entry makes it a voter, so
//! no node could ever be elected again.
//!
//! So a node that is left out by its newest membership entry, E, ignores E and everything after E when it is
//! asked for a vote. Nothing is lost by that: E and everything committed after it are on a majority of the
//! new voters. The candidate cannot know E, or it would not ask this node. So its newest change of voters is
//! J, the one before E, which needs a majority of the new voters as well, and those compare logs by the full
//! rule. Entries that were committed before J are in the log of a candidate that has J, which is checked
//! here.

use annulus_core::ids::NodeId;
use openraft::raft::VoteRequest;
use openraft::{CommittedLeaderId, LeaderId, LogId};

use super::raft::Raft;

/// Return a request for this node's vote in the form on which its Raft decides.
pub(super) async fn weigh(me: NodeId, raft: &Raft, mut request: VoteRequest<u64>) -> VoteRequest<u64> {
    let before = raft.with_raft_state(move |state| {
        let (newest, before) = (state.membership_state.effective(), state.membership_state.committed());
        let votes = newest.membership().voter_ids().any(|id| id == me.0);
        (!votes && before.log_id() < newest.log_id()).then(|| *before.log_id())
    });
    // An error means that this Raft has ended. It then fails the request itself.
    if let Ok(Some(before)) = before.await
        && before <= request.last_log_id
    {
        let LeaderId { term, node_id } = request.vote.leader_id;
        tracing::info!(
            candidate = node_id,
            "the newest change of voters leaves this node out, and does not count in its vote"
        );
        // No log that a candidate of this term may follow has a later entry than this one.
        request.last_log_id = Some(LogId::new(CommittedLeaderId::new(term, node_id), u64::MAX));
    }
    request
}
