//! Recovery from the permanent loss of a majority (R19).
//!
//! In two steps, so that an operator sees every assumption: [`Recoverer::survey`] asks every member for its
//! state; [`Recoverer::recover`] does so again and, if the result is the one that was shown, begins a new
//! lineage as its only voter. Survivors that are up move to it at once; others learn of it later.

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

/// Longest wait for a member's state. A slower member counts as lost.
const SURVEY: Duration = Duration::from_secs(3);

/// A node that had a leader, or led a majority, within this time has lost nothing.
const LED: Duration = Duration::from_secs(2);

/// Time after the last leader's message, or after a start, by which an election among enough voters is surely
/// over: it takes a few rounds of at most 3 s.
const ELECTED: Duration = Duration::from_secs(10);

/// Longest time until the new group of one has a leader.
const ELECTION: Duration = Duration::from_secs(10);

/// Longest wait for the other survivors before the operator gets a reply. They continue after it.
const TAKE_OVER: Duration = Duration::from_secs(5);

/// Reason why there was no recovery. Nothing was changed, except where a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A majority of the voters can be reached.
    #[error(
        "a majority of the voters is there: there is nothing to recover. `annulus remove` drops a node that is gone"
    )]
    NotNeeded,
    /// The survey differs from the one that the operator has seen.
    #[error("what can be reached has changed since it was shown: run `annulus recover` again and look")]
    Changed,
    /// Another node has recovered the cluster already.
    #[error("the cluster was recovered by another node already; this one is taking that over now")]
    Recovered,
    /// A newer lineage does not have this node as a member.
    #[error(
        "the cluster was recovered without this node, which is no member of it any more; run this on a \
         member. `annulus status` on this node says what can be done with it"
    )]
    Outside,
    /// The newest state does not have this node as a member.
    #[error("the newest state that can be found does not have this node as a member; run it on another one")]
    NotMember,
    /// The new lineage was begun and has no leader.
    #[error("the new lineage was begun on this node and has no leader yet; look at `annulus status`")]
    NoLeader,
    /// The control plane failed during the change; the node stops, and continues after a restart.
    #[error("the node could not change over: {0}; start it again and look at `annulus status`")]
    Failed(#[from] ClusterError),
}

/// A completed recovery.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The survey that it was made from.
    pub basis: Recovery,
    /// The new lineage.
    pub lineage: Lineage,
    /// Survivors that are in it already, this node among them.
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
    /// True if the cluster cannot change without a recovery, by the members that answered.
    pub(super) fn needs_recovery(&self, survey: &Recovery) -> bool {
        let answered = survey.answered.iter().map(|node| node.0).collect();
        let group = &self.group;
        // Enough voters and no leader: an election, which is over soon. If it is not, the voters have changed
        // since this node last heard of them, and they are no majority.
        let electing = group.contact().is_younger_than(ELECTED) || group.heard_from_leader_within(ELECTED);
        let has_majority = group.heard_from_leader_within(LED);
        !(has_majority || electing && group.knows_voters() && group.is_majority(&answered))
    }

    /// Ask every member for the newest state that it has.
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

    /// Begin a new lineage with the newest state found. `shown` is the lineage and index of the state that the
    /// operator has seen, and `answered` the members that the survey reached.
    pub(super) async fn recover(
        &self,
        shown: (Lineage, u64),
        answered: &[NodeId],
    ) -> Result<Recovered, RecoverError> {
        let heard = self.lineages.take_over_what_is_heard().await;
        if self.views.load().outside.is_some() {
            return Err(RecoverError::Outside);
        }
        let basis = self.survey().await;
        if !self.needs_recovery(&basis) {
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
        // A lineage that was heard of, and whose state is lost, must not come back as the newer one.
        let state = basis.state.recovered(heard, annulus_ground::random(), &basis.lost);
        let lineage = state.lineage;
        match self.supervisor.change_over(state, LineageRole::Begins).await {
            Ok(()) => {}
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

    /// Elect this node in its group of one.
    async fn lead_alone(&self) -> Result<(), RecoverError> {
        let raft = self.group.raft();
        // At once, without waiting for the end of a lease that no node holds.
        let _ = raft.trigger().elect().await;
        let mut metrics = raft.metrics();
        let me = self.me.0;
        match timeout(ELECTION, metrics.wait_for(|metrics| metrics.current_leader == Some(me))).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(RecoverError::NoLeader),
        }
    }

    /// Tell all survivors, and return those that have moved to the lineage in time.
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
