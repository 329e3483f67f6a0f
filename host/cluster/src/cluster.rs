//! A node's handle of its control plane.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::state::{Change, Command, Lineage, Outcome, Plan, Recovery, Refusal};
use annulus_core::version::Speaks;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use super::address_exchange::AddressExchange;
use super::authority::{Authorities, SigningError};
use super::change::{Changed, Changes};
use super::encoded::EncodedState;
use super::ended::{EndSignal, Ended};
use super::fetch::StateFetcher;
use super::group::{RaftGroup, RaftMembers};
use super::hold::JoinHold;
use super::join::{Admission, IssueError, IssuedToken};
use super::lineage::Lineages;
use super::liveness::Liveness;
use super::messages::Subject;
use super::participation::Participation;
use super::propose::{ProposeError, Proposer};
use super::recover::{RecoverError, Recovered, Recoverer};
use super::rivals::Rivals;
use super::start_check::StartCheck;
use super::storage::RingCopy;
use super::supervisor::Supervisor;
use super::tasks::Tasks;
use super::token::Token;
use super::versions::Versions;
use super::view::{DeadlineExceeded, View, Views};
use annulus_transport::identity::Authority;

/// A node's handle of its control plane. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    pub(super) inner: Arc<Parts>,
}

/// The parts of a control plane. Each holds only what its constructor takes; the claimant, the announcer and
/// the failure detector's driver are tasks and not listed here.
pub(super) struct Parts {
    pub(super) me: NodeId,
    pub(super) uid: NodeUid,
    pub(super) views: Arc<Views>,
    pub(super) copy: RingCopy,
    pub(super) group: Arc<RaftGroup>,
    pub(super) versions: Arc<Versions>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) changes: Changes,
    pub(super) admission: Admission,
    pub(super) authorities: Arc<Authorities>,
    pub(super) fetcher: Arc<StateFetcher>,
    pub(super) encoded: EncodedState,
    pub(super) lineages: Arc<Lineages>,
    pub(super) recoverer: Recoverer,
    pub(super) participation: Arc<Participation>,
    pub(super) start_check: Arc<StartCheck>,
    pub(super) exchange: Arc<AddressExchange>,
    pub(super) liveness: Liveness,
    pub(super) rivals: Rivals,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) tasks: Arc<Tasks>,
    pub(super) ended: EndSignal,
}

impl Cluster {
    /// Return the id of this node.
    pub fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Return the id of this node's data directory.
    pub fn uid(&self) -> NodeUid {
        self.inner.uid
    }

    /// Return the committed state as known to this node. Cheap enough for every request.
    pub fn view(&self) -> Arc<View> {
        self.inner.views.load()
    }

    /// Subscribe to the view, which changes with each applied batch.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.inner.views.subscribe()
    }

    /// Store the current view on this node's disk, in order before all later writes to the same database. If
    /// the node deletes something because of a view, a restart must find that view.
    pub fn keep_view(&self) {
        self.inner.copy.write(&self.view().state);
    }

    /// Wait until this node's view includes the entry of an index.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<Arc<View>, DeadlineExceeded> {
        self.inner.views.wait_applied(index, deadline).await
    }

    /// Adopt a newer state from a peer that has announced one (R2), and wait for it.
    pub fn learn_from(
        &self,
        peer: NodeId,
        index: u64,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Arc<View>, DeadlineExceeded>> {
        Box::pin(self.inner.fetcher.learn_from(peer, index, deadline))
    }

    /// Adopt a newer state from the leader, if the leader has one and responds in time. Return false if this node knows no
    /// leader.
    pub fn learn_news(&self, deadline: Instant) -> BoxFuture<'_, bool> {
        Box::pin(self.inner.fetcher.learn_news(deadline))
    }

    /// Return this node's failure detector, for choosing fallbacks and for display. It decides no ownership.
    pub fn liveness(&self) -> &Liveness {
        &self.inner.liveness
    }

    /// Return the leader that this node knows. It may be out of date.
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.group.leader()
    }

    /// Return true if within `limit` this node has accepted a leader's message, or has itself led a majority
    /// (R1).
    pub fn heard_from_leader_within(&self, limit: Duration) -> bool {
        self.inner.group.heard_from_leader_within(limit)
    }

    /// Return voters and learners, for `status`.
    pub fn raft_members(&self) -> RaftMembers {
        self.inner.group.members()
    }

    /// Return the versions that this node speaks.
    pub fn speaks(&self) -> Speaks {
        self.inner.versions.speaks()
    }

    /// Return the versions that a member speaks; `None` if it has not connected since this node's start.
    pub fn speaks_of(&self, view: &View, node: NodeId) -> Option<Speaks> {
        self.inner.versions.speaks_of(view, node)
    }

    /// Return the names of the members that keep the cluster below `level`, each with the reason. Members
    /// that have not connected yet are named only if no other is known to be older.
    pub fn held_back_by(&self, view: &View, level: u32) -> Vec<String> {
        self.inner.versions.held_back_by(view, level)
    }

    /// Change the cluster's state, and return the entry's index with its outcome. On the leader the entry is
    /// applied by then; elsewhere [`Cluster::wait_applied`] waits for it.
    pub fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<(u64, Outcome), ProposeError>> {
        self.inner.proposer.propose(command, deadline)
    }

    /// Issue a token that lets a node join within `lifetime`.
    pub fn issue_token(
        &self,
        lifetime: Duration,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Token, IssueError>> {
        Box::pin(async move { Ok(self.inner.admission.issue_token(lifetime, None, deadline).await?.token) })
    }

    /// Issue a token that lets `uses` nodes join within `lifetime`; without `uses` one node or, if the cluster's level
    /// has no count, any number.
    pub fn issue_counted_token(
        &self,
        lifetime: Duration,
        uses: Option<u32>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<IssuedToken, IssueError>> {
        Box::pin(self.inner.admission.issue_token(lifetime, uses, deadline))
    }

    /// Return the authority with its private key, if this node has the key.
    pub fn authority(&self) -> Option<Authority> {
        self.inner.authorities.authority()
    }

    /// Have the public key of an operator signed, by this node or by a voter. Return the chain in PEM.
    pub fn sign_operator<'a>(
        &'a self,
        public_key: &'a [u8],
        deadline: Instant,
    ) -> BoxFuture<'a, Result<String, SigningError>> {
        Box::pin(async move {
            let authorities = &self.inner.authorities;
            let signer = authorities.signer(deadline).await.ok_or(SigningError::Nobody)?;
            authorities.sign(signer, Subject::Operator, public_key, 0, deadline).await
        })
    }

    /// Block changes of this node's cluster for a join through `member`, until the hold is dropped. On
    /// return, the node's view includes everything that its cluster has accepted before. On an error, nothing
    /// is held.
    pub async fn hold_for_join(
        &self,
        member: SocketAddr,
        deadline: Instant,
    ) -> Result<JoinHold, ProposeError> {
        JoinHold::take(&self.inner.proposer, member, deadline).await
    }

    /// Start the leave of a node (this one if `None`): it hands off its partitions, then ends.
    pub fn leave<'a>(
        &'a self,
        name: Option<&'a str>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<NodeId, ProposeError>> {
        Box::pin(self.inner.changes.leave(name, deadline))
    }

    /// Compute the effect of the staged changes, by the newest state that is available before the deadline.
    /// `None` if nothing is staged.
    pub fn plan(&self, deadline: Instant) -> BoxFuture<'_, Result<Option<Plan>, Refusal>> {
        Box::pin(self.inner.changes.plan(deadline))
    }

    /// Compute the effect that one change would have now.
    pub fn plan_of(&self, change: Change) -> BoxFuture<'_, Result<Plan, Refusal>> {
        Box::pin(self.inner.changes.plan_of(change))
    }

    /// Stage a change, and return the index of its entry.
    pub fn stage(&self, change: Change, deadline: Instant) -> BoxFuture<'_, Result<u64, ProposeError>> {
        Box::pin(self.inner.changes.decide(Command::Stage { change }, deadline))
    }

    /// Discard the staged changes.
    pub fn clear_staged(&self, deadline: Instant) -> BoxFuture<'_, Result<u64, ProposeError>> {
        Box::pin(self.inner.changes.decide(Command::ClearStaged, deadline))
    }

    /// Mark a node as down, or remove the mark.
    pub fn mark(
        &self,
        node: NodeId,
        down: bool,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<u64, ProposeError>> {
        let command = if down { Command::Down { node } } else { Command::Up { node } };
        Box::pin(self.inner.changes.decide(command, deadline))
    }

    /// Acknowledge the losses up to an index.
    pub fn acknowledge(&self, up_to: u64, deadline: Instant) -> BoxFuture<'_, Result<u64, ProposeError>> {
        Box::pin(self.inner.changes.decide(Command::Acknowledge { up_to }, deadline))
    }

    /// Make one change, as one rebalancing.
    pub fn change(&self, change: Change, deadline: Instant) -> BoxFuture<'_, Result<Changed, ProposeError>> {
        Box::pin(self.inner.changes.change(change, deadline))
    }

    /// Commit the staged changes: the plan with this id, or the current plan if `None`.
    pub fn commit<'a>(
        &'a self,
        id: Option<&'a str>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Changed, ProposeError>> {
        Box::pin(self.inner.changes.commit(id, deadline))
    }

    /// Return true if the cluster cannot change without a recovery, given the members that answered.
    pub fn needs_recovery<'a>(&'a self, survey: &'a Recovery) -> BoxFuture<'a, bool> {
        Box::pin(self.inner.recoverer.needs_recovery(survey))
    }

    /// Ask every member for its newest state.
    pub fn survey(&self) -> BoxFuture<'_, Recovery> {
        Box::pin(self.inner.recoverer.survey())
    }

    /// Start a new lineage with the newest state found. `shown` is the lineage and index of the state that
    /// the operator has seen, and `answered` the members that the survey reached.
    pub fn recover<'a>(
        &'a self,
        shown: (Lineage, u64),
        answered: &'a [NodeId],
    ) -> BoxFuture<'a, Result<Recovered, RecoverError>> {
        Box::pin(self.inner.recoverer.recover(shown, answered))
    }

    /// Return the nodes of another history of this cluster that were met within the last minute. One side
    /// removed the other, which was then recovered. Both serve.
    pub fn rivals(&self) -> Vec<NodeUid> {
        self.inner.rivals.met()
    }

    /// Return true if the start check has found this disk to be the node's newest, so that Raft takes part.
    pub fn takes_part(&self) -> bool {
        self.inner.participation.takes_part()
    }

    /// Return true if a peer has been asked about this start of the node and had no objection.
    pub fn was_accepted(&self) -> bool {
        self.inner.start_check.was_accepted()
    }

    /// Wait until this node takes part. Until then its copy of the state may be an older one, by which it
    /// owns partitions that it has handed off since. The error is the reason for which the node may not take
    /// part.
    pub fn comes_in(&self) -> BoxFuture<'_, Result<(), Ended>> {
        Box::pin(self.inner.start_check.passed())
    }

    /// Subscribe to the end of this node's part in the cluster.
    pub fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.inner.ended.subscribe()
    }

    /// Return a reference that outlives the control plane only if a part of it is leaked.
    pub fn remains(&self) -> Weak<dyn Any + Send + Sync> {
        // All parts with tasks or requests share the group.
        let held: Arc<dyn Any + Send + Sync> = self.inner.group.clone();
        Arc::downgrade(&held)
    }

    /// Stop taking part. Everything committed is on disk already.
    pub fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let tasks = self.inner.tasks.abort();
            self.inner.supervisor.stop().await;
            for task in tasks {
                let _ = task.await;
            }
        })
    }
}
