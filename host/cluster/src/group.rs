//! The Raft group as this node sees it: its role, the leader, the voters.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::state::Lineage;
use arc_swap::ArcSwap;
use openraft::ServerState;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::contact::LeaderContact;
use super::raft::Raft;
use super::storage::RaftStore;

/// Members of the Raft group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftMembers {
    /// Nodes whose majority decides.
    pub voters: Vec<NodeId>,
    /// Nodes that receive the log and do not vote.
    pub learners: Vec<NodeId>,
    /// True if a change of voters is in progress. It needs majorities of both the old and the new voters.
    pub changing: bool,
}

/// A running Raft, and the lineage that it belongs to.
pub(super) struct Running {
    pub(super) raft: Raft,
    pub(super) lineage: Lineage,
    /// The log and the vote of `raft`.
    pub(super) store: RaftStore,
    /// Reports a failure of `raft`; aborted when `raft` is shut down on purpose.
    pub(super) watch: JoinHandle<()>,
}

/// Read access to the running Raft. Only the supervisor replaces it.
pub(super) struct RaftGroup {
    me: NodeId,
    contact: Arc<LeaderContact>,
    /// Replaced whole when the node moves to another lineage.
    running: ArcSwap<Running>,
}

impl RaftGroup {
    pub(super) fn new(me: NodeId, contact: Arc<LeaderContact>, running: Running) -> Self {
        Self { me, contact, running: ArcSwap::from_pointee(running) }
    }

    pub(super) fn running(&self) -> Arc<Running> {
        self.running.load_full()
    }

    /// Continue with a Raft of a newer lineage, or with another one of the same. The former one must have ended.
    pub(super) fn replace(&self, running: Running) {
        debug_assert!(running.lineage >= self.running.load().lineage, "lineages only advance");
        self.running.store(Arc::new(running));
    }

    pub(super) fn raft(&self) -> Raft {
        self.running.load().raft.clone()
    }

    pub(super) fn contact(&self) -> &LeaderContact {
        &self.contact
    }

    /// Return the leader that this node knows. It may be out of date.
    pub(super) fn leader(&self) -> Option<NodeId> {
        self.raft().metrics().borrow().current_leader.map(NodeId)
    }

    /// Return true if this node leads, as far as it knows.
    pub(super) fn leads(&self) -> bool {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow();
        metrics.state == ServerState::Leader && metrics.running_state.is_ok()
    }

    /// Return true if within `limit` this node has accepted a leader's message, or has itself led a majority
    /// (R1).
    pub(super) fn heard_from_leader_within(&self, limit: Duration) -> bool {
        if self.leads() { self.has_quorum(limit) } else { self.contact.leader_within(limit) }
    }

    /// Return true if this node leads, and a majority of voters has followed it within `limit`.
    pub(super) fn leads_a_majority_within(&self, limit: Duration) -> bool {
        self.leads() && self.has_quorum(limit)
    }

    /// Return true if a majority of voters has followed this leader within `limit`.
    pub(super) fn has_quorum(&self, limit: Duration) -> bool {
        let metrics = self.raft().metrics();
        let membership = metrics.borrow().membership_config.clone();
        self.contact.quorum_within(self.me.0, membership.membership().get_joint_config(), limit)
    }

    /// Wait until a majority has followed this leader within `limit`. Return false if the deadline comes
    /// first.
    pub(super) async fn wait_for_quorum(&self, limit: Duration, deadline: Instant) -> bool {
        loop {
            // This is registered before the check, so that no reply in between is missed.
            let next = self.contact.next_follower();
            tokio::pin!(next);
            next.as_mut().enable();
            if self.has_quorum(limit) {
                return true;
            }
            if timeout_at(deadline, next).await.is_err() {
                return false;
            }
        }
    }

    /// Return true if `nodes` are a majority of the voters; during a change, of both the old and the new
    /// ones.
    pub(super) fn is_majority(&self, nodes: &BTreeSet<u64>) -> bool {
        let metrics = self.raft().metrics();
        let membership = metrics.borrow().membership_config.clone();
        let configs = membership.membership().get_joint_config();
        // The result is true without any voters, because a node that knows of none cannot determine that
        // there are too few.
        configs.iter().all(|voters| voters.intersection(nodes).count() > voters.len() / 2)
    }

    /// Return true if this node's Raft knows the voters.
    pub(super) fn knows_voters(&self) -> bool {
        !self.members().voters.is_empty()
    }

    /// Return true if `node` is the group's only voter.
    pub(super) fn has_only_voter(&self, node: NodeId) -> bool {
        let members = self.members();
        !members.changing && members.voters == [node]
    }

    pub(super) fn members(&self) -> RaftMembers {
        let metrics = self.raft().metrics();
        let stored = metrics.borrow().membership_config.clone();
        let membership = stored.membership();
        RaftMembers {
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            changing: membership.get_joint_config().len() > 1,
        }
    }
}
