//! The votes of a node that the newest change of voters leaves out.
//!
//! A leader appends the entry that ends a change of voters and may end itself before any of the new voters has
//! it. The new voters know only of the change that is under way, and need votes of the old ones, who have a longer
//! log than they. In Raft (Ongaro's thesis, 4.2.2) such an old voter stands for election itself, and passes
//! the entry on. openraft lets nobody stand who is not a voter in its own newest entry, so nobody could ever be
//! elected again.
//!
//! So a node that its newest entry of members, E, leaves out takes no account of E and of what follows it when
//! it is asked for a vote. Nothing is lost by that: E and whatever was committed after it has a majority of the new
//! voters behind it. The candidate cannot know E, or it would not ask this node, and so its own newest change of voters
//! is the one before E, J, which needs a majority of the new voters as well: they compare logs by the full rule. What
//! was committed before J is in the log of a candidate that has J, which is looked at here.

use openraft::raft::VoteRequest;
use openraft::{CommittedLeaderId, LeaderId, LogId};

use super::Cluster;
use super::raft::Raft;

impl Cluster {
    /// A request for this node's vote as its Raft is to see it.
    pub(super) async fn weigh(&self, raft: &Raft, mut request: VoteRequest<u64>) -> VoteRequest<u64> {
        let me = self.me().0;
        let before = raft.with_raft_state(move |state| {
            let (newest, before) = (state.membership_state.effective(), state.membership_state.committed());
            let votes = newest.membership().voter_ids().any(|id| id == me);
            (!votes && before.log_id() < newest.log_id()).then(|| *before.log_id())
        });
        // An error: this Raft has ended, and says so to the request itself.
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
}
