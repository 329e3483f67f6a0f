//! Recovery from the permanent loss of a majority (R19).
//!
//! A recovery has two steps, so that an operator sees every assumption first. [`Recoverer::survey`] asks every
//! member for its state. [`Recoverer::recover`] repeats the survey and, if the result has not changed since it was
//! shown, starts a new lineage with this node as the only voter. Survivors that can be reached move to the new
//! lineage immediately; others learn of it later.

use std::sync::Arc;
use std::time::Duration;

use annulus_core::codec;
use annulus_core::ids::NodeId;
use annulus_core::state::{Answer, Lineage, Recovery};
use annulus_transport::kind;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::ended::{EndSignal, Ended};
use super::fetch::StateFetcher;
use super::group::RaftGroup;
use super::lineage::Lineages;
use super::peers::Peers;
use super::supervisor::{ChangeOverError, ClusterError, LineageRole, Supervisor};
use super::view::Views;

/// Time limit for a member to send its state. A member that does not respond in time counts as lost.
const SURVEY: Duration = Duration::from_secs(3);

/// A node that has heard from a leader of a majority, or has led one, within this time needs no recovery.
pub(super) const LED: Duration = Duration::from_secs(2);

/// Time limit for the leader to say whether a majority follows it.
const LEADER: Duration = Duration::from_secs(1);

/// Time by which an election among a majority of the voters has certainly ended. It takes a few rounds of at most
/// 3 s each. The time counts from the last message of a leader, or from the start of this node's Raft.
const ELECTED: Duration = Duration::from_secs(10);

/// Time limit for electing this node as the leader of the new single-voter group.
const ELECTION: Duration = Duration::from_secs(10);

/// Longest wait for the other survivors before the operator gets a reply. Slower survivors still move to the new
/// lineage afterwards.
const TAKE_OVER: Duration = Duration::from_secs(5);

/// The reason for which a recovery failed or was refused. Nothing has changed, unless the variant says
/// otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A majority of the voters can be reached.
    #[error(
        "a majority of the voters is reachable, so no recovery is needed. Use `annulus remove` to drop a lost node"
    )]
    NotNeeded,
    /// The result of the survey differs from the one that was shown to the operator.
    #[error(
        "the reachable members or their state have changed since they were shown: run `annulus recover` again \
         and check the result"
    )]
    Changed,
    /// Another node has recovered the cluster already.
    #[error("another node has already recovered the cluster; this node is adopting the new state now")]
    Recovered,
    /// The cluster has a newer lineage, of which this node is not a member.
    #[error(
        "the cluster was recovered without this node, which is no longer a member of it; run this on a \
         member. `annulus status` on this node says what can be done with it"
    )]
    Outside,
    /// This node is not a member in the newest state that the survey found.
    #[error(
        "this node is not a member in the newest state that was found; run `annulus recover` on a member"
    )]
    NotMember,
    /// The new lineage was started, but has no leader yet.
    #[error("the new lineage was started on this node, but has no leader yet; check `annulus status`")]
    NoLeader,
    /// The control plane failed during the change to the new lineage. The node stops; after a restart it continues.
    #[error("the node failed to change to the new lineage: {0}; start it again and check `annulus status`")]
    Failed(#[from] ClusterError),
}

/// A completed recovery.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The survey on which the recovery is based.
    pub basis: Recovery,
    /// The new lineage.
    pub lineage: Lineage,
    /// Survivors that have already moved to the new lineage, including this node.
    pub adopted: Vec<NodeId>,
}

/// Recovers the cluster, at an operator's request.
pub(super) struct Recoverer {
    pub(super) me: NodeId,
    pub(super) views: Arc<Views>,
    pub(super) group: Arc<RaftGroup>,
    pub(super) peers: Peers,
    pub(super) fetcher: Arc<StateFetcher>,
    pub(super) lineages: Arc<Lineages>,
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) ended: EndSignal,
}

impl Recoverer {
    /// Return true if the members that answered the survey cannot commit changes without a recovery.
    pub(super) async fn needs_recovery(&self, survey: &Recovery) -> bool {
        let answered = survey.answered.iter().map(|node| node.0).collect();
        let group = &self.group;
        // If a majority of the known voters answered but there is no leader, an election is in progress and
        // ends soon. If it does not end, the voters have changed since this node last learned of them, and
        // the members that answered are no longer a majority.
        let electing = group.contact().is_younger_than(ELECTED) || group.heard_from_leader_within(ELECTED);
        let has_majority = group.heard_from_leader_within(LED) && self.leader_has_majority().await;
        !(has_majority || electing && group.knows_voters() && group.is_majority(&answered))
    }

    /// Return false if the leader that this node follows says that no majority follows it. Such a leader goes on to lead those
    /// that it reaches.
    async fn leader_has_majority(&self) -> bool {
        let Some(leader) = self.group.leader().filter(|leader| *leader != self.me) else { return true };
        let Ok(question) = codec::encode(&()) else { return true };
        let answer = self.peers.call(leader, kind::LEADS, question.into(), Instant::now() + LEADER).await;
        // An earlier version does not know the question. A leader that has just gone is no longer heard from soon.
        answer.ok().and_then(|answer| codec::decode(&answer).ok()).unwrap_or(true)
    }

    /// Ask every member for its newest state, and combine the answers.
    pub(super) async fn survey(&self) -> Recovery {
        let view = self.views.load();
        let deadline = Instant::now() + SURVEY;
        let others = view.state.live_members().map(|member| member.id).filter(|id| *id != view.me);
        let asked = others.map(|node| async move {
            let state = *self.fetcher.state_of(node, 0, deadline).await?;
            Some(Answer { node, state })
        });
        let own = Answer { node: view.me, state: view.state.clone() };
        let answers: Vec<Answer> = join_all(asked).await.into_iter().flatten().chain([own.clone()]).collect();
        let ours = |answer: &Answer| answer.state.cluster == view.state.cluster;
        Recovery::from_answers(answers.into_iter().filter(ours).collect())
            .or_else(|| Recovery::from_answers(vec![own]))
            .expect("this node has answered")
    }

    /// Start a new lineage from the newest state found. `shown` is the lineage and index of the state that was shown
    /// to the operator; `answered` lists the members that had answered that survey.
    pub(super) async fn recover(
        &self,
        shown: (Lineage, u64),
        answered: &[NodeId],
    ) -> Result<Recovered, RecoverError> {
        let heard = self.lineages.take_over_what_is_heard().await;
        if self.views.load().outside.is_some() {
            return Err(RecoverError::Outside);
        }
        let seen = self.group.raft().metrics().borrow().last_log_index;
        let basis = self.survey().await;
        if !self.needs_recovery(&basis).await {
            return Err(RecoverError::NotNeeded);
        }
        if basis.state.lineage > self.views.load().state.lineage {
            if let Some(member) = basis.state.members.get(&basis.from) {
                self.lineages.hear_of(member.uid, basis.state.lineage);
            }
            return Err(RecoverError::Recovered);
        }
        if (basis.state.lineage, basis.state.applied) != shown || basis.answered != answered {
            return Err(RecoverError::Changed);
        }
        if basis.state.member(self.me).is_none() {
            return Err(RecoverError::NotMember);
        }
        annulus_ground::point("recovery: has looked").await;
        // The survey takes a while, in which a majority may have come back and committed changes.
        let now = self.views.load();
        if (now.state.lineage, now.state.applied) > (basis.state.lineage, basis.state.applied) {
            return Err(RecoverError::Changed);
        }
        // The new lineage must also be newer than one that a peer has only reported. If the state of that one
        // is lost for now, it must not reappear later as the newer lineage.
        let state = basis.state.recovered(heard, annulus_ground::random(), &basis.lost);
        let lineage = state.lineage;
        match self.supervisor.change_over(state, LineageRole::Begins { seen }).await {
            Ok(()) => {}
            Err(ChangeOverError::Grown) => return Err(RecoverError::Changed),
            Err(stopping @ ChangeOverError::Stopping) => {
                return Err(ClusterError::Raft(stopping.to_string()).into());
            }
            Err(ChangeOverError::Failed(error)) => {
                self.ended.raise(Ended::Failed(error.to_string()));
                return Err(error.into());
            }
        }
        self.lead_alone().await?;
        let adopted = self.tell_survivors(&basis, lineage).await;
        Ok(Recovered { basis, lineage, adopted })
    }

    /// Elect this node as the leader of its single-voter group.
    async fn lead_alone(&self) -> Result<(), RecoverError> {
        let raft = self.group.raft();
        // Elect immediately. No node holds a leader lease, so there is none to wait for.
        let _ = raft.trigger().elect().await;
        let mut metrics = raft.metrics();
        let me = self.me.0;
        match timeout(ELECTION, metrics.wait_for(|metrics| metrics.current_leader == Some(me))).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(RecoverError::NoLeader),
        }
    }

    /// Tell all survivors about the new lineage, and return those that have moved to it within [`TAKE_OVER`].
    async fn tell_survivors(&self, basis: &Recovery, lineage: Lineage) -> Vec<NodeId> {
        let Ok(message) = codec::encode(&lineage) else { return vec![self.me] };
        let deadline = Instant::now() + TAKE_OVER;
        let told = basis.answered.iter().map(|node| {
            let (node, message) = (*node, message.clone());
            async move {
                let over = node == self.me
                    || self.peers.call(node, kind::RECOVERED, message.into(), deadline).await.is_ok();
                over.then_some(node)
            }
        });
        join_all(told).await.into_iter().flatten().collect()
    }
}
