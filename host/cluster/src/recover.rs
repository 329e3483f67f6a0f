//! Going on without a majority that is lost for good (R19).
//!
//! Two steps, so that nothing is assumed that nobody has seen: [`Cluster::survey`] asks every
//! member and says what it would mean; [`Cluster::recover`] does so again and, if that is what
//! was seen, begins a new lineage as its only voter. Whoever is there takes it over; whoever comes
//! later hears of it.

use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::state::{Answer, Lineage, Recovery};
use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::lineage::Part;
use super::start::ClusterError;
use super::{Cluster, Ended};
use annulus_core::codec;
use annulus_transport::kind;

/// How long a member may take to say what it knows. One that is slower counts as lost.
const SURVEY: Duration = Duration::from_secs(3);

/// Led, or leading, within this time: nothing is lost.
const LED: Duration = Duration::from_secs(2);

/// So long after a leader was heard from, or after a start, an election among enough voters is surely over: it
/// takes a few rounds of at most 3 s.
const ELECTED: Duration = Duration::from_secs(10);

/// How long the new group of one may take to have a leader.
const ELECTION: Duration = Duration::from_secs(10);

/// How long the other survivors may take to come over before the operator is answered. They go on.
const TAKE_OVER: Duration = Duration::from_secs(5);

/// Why there was no recovery. Nothing was changed, except by `Cluster` errors, which say so.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A majority is there.
    #[error(
        "a majority of the voters is there: there is nothing to recover. `annulus remove` drops a node that is gone"
    )]
    NotNeeded,
    /// What was shown to the operator is no longer what is.
    #[error("what can be reached has changed since it was shown: run `annulus recover` again and look")]
    Changed,
    /// Somebody has recovered the cluster already.
    #[error("the cluster was recovered by another node already; this one is taking that over now")]
    Recovered,
    /// A newer lineage does not have this node.
    #[error(
        "the cluster was recovered without this node, which is no member of it any more; run this on a \
         member. `annulus status` on this node says what can be done with it"
    )]
    Outside,
    /// The newest state says that this node is no member.
    #[error("the newest state that can be found does not have this node as a member; run it on another one")]
    NotMember,
    /// It was begun and does not work.
    #[error("the new lineage was begun on this node and has no leader yet; look at `annulus status`")]
    NoLeader,
    /// The control plane failed underway; the node stops, and goes on after a restart.
    #[error("the node could not change over: {0}; start it again and look at `annulus status`")]
    Failed(#[from] ClusterError),
}

/// What a recovery did.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What was assumed.
    pub basis: Recovery,
    /// The new lineage.
    pub lineage: Lineage,
    /// Survivors that go by it already, this node among them.
    pub adopted: Vec<NodeId>,
}

impl Cluster {
    /// Is a majority of the voters heard from, so that the cluster can change?
    fn has_majority(&self) -> bool {
        self.heard_from_leader_within(LED)
    }

    /// Would the cluster be able to change without a recovery, going by who answered?
    pub fn needs_recovery(&self, survey: &Recovery) -> bool {
        let answered = survey.answered.iter().map(|node| node.0).collect();
        // Enough voters and no leader: that is an election, and over in a moment. If it is not, the voters have
        // changed since this node heard last, and its majority is none.
        let electing = self.contact().is_younger_than(ELECTED) || self.heard_from_leader_within(ELECTED);
        !(self.has_majority() || electing && self.knows_voters() && self.is_majority(&answered))
    }

    /// Asks every member for the newest state that it knows.
    pub fn survey(&self) -> BoxFuture<'_, Recovery> {
        Box::pin(async move {
            let view = self.view();
            let deadline = Instant::now() + SURVEY;
            let others = view.state.live_members().map(|member| member.id).filter(|id| *id != view.me);
            let asked = others.map(|node| async move {
                let state = *self.state_of(node, 0, deadline).await?;
                Some(Answer { node, state })
            });
            let own = Answer { node: view.me, state: view.state.clone() };
            let answers: Vec<Answer> =
                join_all(asked).await.into_iter().flatten().chain([own.clone()]).collect();
            let ours = |answer: &Answer| answer.state.cluster == view.state.cluster;
            Recovery::from_answers(answers.into_iter().filter(ours).collect())
                .or_else(|| Recovery::from_answers(vec![own]))
                .expect("this node has answered")
        })
    }

    /// Begins a new lineage with the newest state that can be found. `shown` is what an operator
    /// has seen: lineage and index of that state, and who answered.
    pub fn recover<'a>(
        &'a self,
        shown: (Lineage, u64),
        answered: &'a [NodeId],
    ) -> BoxFuture<'a, Result<Recovered, RecoverError>> {
        Box::pin(async move {
            let heard = self.take_over_what_is_heard().await;
            if self.view().outside.is_some() {
                return Err(RecoverError::Outside);
            }
            let basis = self.survey().await;
            if !self.needs_recovery(&basis) {
                return Err(RecoverError::NotNeeded);
            }
            if basis.state.lineage > self.view().state.lineage {
                if let Some(member) = basis.state.members.get(&basis.from) {
                    self.hear_of(member.uid, basis.state.lineage);
                }
                return Err(RecoverError::Recovered);
            }
            if (basis.state.lineage, basis.state.applied) != shown || basis.answered != answered {
                return Err(RecoverError::Changed);
            }
            if basis.state.member(self.me()).is_none() {
                return Err(RecoverError::NotMember);
            }
            annulus_ground::point("recovery: has looked").await;
            // One that was heard of, and that nobody can give any more, is not to come back as the newer one.
            let state = basis.state.recovered(heard, annulus_ground::random(), &basis.lost);
            let lineage = state.lineage;
            if let Err(error) = self.change_over(state, Part::Begins).await {
                self.end(Ended::Failed(error.to_string()));
                return Err(error.into());
            }
            self.lead_alone().await?;
            let adopted = self.tell_survivors(&basis, lineage).await;
            Ok(Recovered { basis, lineage, adopted })
        })
    }

    async fn lead_alone(&self) -> Result<(), RecoverError> {
        let raft = self.raft();
        // Without waiting for the end of a lease that nobody holds.
        let _ = raft.trigger().elect().await;
        let mut metrics = raft.metrics();
        let me = self.me().0;
        match timeout(ELECTION, metrics.wait_for(|metrics| metrics.current_leader == Some(me))).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(RecoverError::NoLeader),
        }
    }

    async fn tell_survivors(&self, basis: &Recovery, lineage: Lineage) -> Vec<NodeId> {
        let Ok(message) = codec::encode(&lineage) else { return vec![self.me()] };
        let deadline = Instant::now() + TAKE_OVER;
        let told = basis.answered.iter().map(|node| {
            let (node, message) = (*node, message.clone());
            async move {
                let over = node == self.me()
                    || self.call(node, kind::RECOVERED, message.into(), deadline).await.is_ok();
                over.then_some(node)
            }
        });
        join_all(told).await.into_iter().flatten().collect()
    }

    /// A peer has recovered the cluster: answers when this node goes by that.
    pub(super) async fn come_over(
        &self,
        from: annulus_core::ids::NodeUid,
        lineage: Lineage,
        deadline: Instant,
    ) -> bool {
        self.hear_of(from, lineage);
        let mut views = self.watch();
        let over = views.wait_for(|view| view.state.lineage >= lineage);
        matches!(tokio::time::timeout_at(deadline, over).await, Ok(Ok(_)))
    }
}
