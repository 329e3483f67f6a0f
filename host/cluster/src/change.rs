//! Changes of the membership that an operator requests: planned here, decided by the log.
//!
//! A plan is made from this node's copy of the state and names that copy. If the state has changed by the
//! time the entry is applied, the entry is refused and the plan is made again. Flips of a rebalancing in
//! progress change the base of a plan and not its effect, so the plan is then made again.

use std::sync::Arc;

use annulus_core::ids::NodeId;
use annulus_core::state::{Change, Command, MemberStatus, Plan, Refusal, plan};
use tokio::time::Instant;

use super::fetch::StateFetcher;
use super::propose::{ProposeError, Proposer};
use super::view::{View, Views};

/// A committed change.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Index of its entry.
    pub index: u64,
    /// Its effect.
    pub plan: Plan,
}

/// Plans and proposes the changes that operators request.
pub(super) struct Changes {
    me: NodeId,
    views: Arc<Views>,
    fetcher: Arc<StateFetcher>,
    proposer: Arc<Proposer>,
}

impl Changes {
    pub(super) fn new(
        me: NodeId,
        views: Arc<Views>,
        fetcher: Arc<StateFetcher>,
        proposer: Arc<Proposer>,
    ) -> Self {
        Self { me, views, fetcher, proposer }
    }

    /// Compute the effect of the staged changes, by the newest state that is available before the deadline.
    /// `None` if nothing is staged.
    pub(super) async fn plan(&self, deadline: Instant) -> Result<Option<Plan>, Refusal> {
        self.fetcher.learn_news(deadline).await;
        let view = self.views.load();
        if view.state.staged.is_empty() {
            return Ok(None);
        }
        let staged = view.state.staged.clone();
        make_plan(view, staged).await.map(Some)
    }

    /// Compute the effect that one change would have now.
    pub(super) async fn plan_of(&self, change: Change) -> Result<Plan, Refusal> {
        make_plan(self.views.load(), vec![change]).await
    }

    /// Make one change, as one rebalancing.
    pub(super) async fn change(&self, change: Change, deadline: Instant) -> Result<Changed, ProposeError> {
        let down = self.views.load().state.is_of_one_down(change);
        loop {
            let plan = self.plan_of(change).await?;
            // A change that was requested for a live member is not forced because the member is down by now.
            let view = self.views.load();
            if view.state.is_of_one_down(change) != down {
                return Err(Refusal::PlanChanged.into());
            }
            let (base, table) = (plan.base, plan.table.clone());
            let down = (view.state.level >= 3).then_some(down);
            let command = Command::Change { change, base, table, down };
            annulus_ground::point("changes: planned").await;
            match self.decide(command, deadline).await {
                Ok(index) => return Ok(Changed { index, plan }),
                Err(ProposeError::Refused(Refusal::RingChanged)) if Instant::now() < deadline => {
                    self.fetcher.learn_news(deadline).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Commit the staged changes: the plan with this id, or the current plan if `None`.
    pub(super) async fn commit(&self, id: Option<&str>, deadline: Instant) -> Result<Changed, ProposeError> {
        let mut id = id.map(str::to_owned);
        loop {
            let plan = self.plan(deadline).await?.ok_or(Refusal::NothingStaged)?;
            let found = plan.id();
            if *id.get_or_insert_with(|| found.clone()) != found {
                return Err(Refusal::PlanChanged.into());
            }
            let (stage, base, table) = (plan.stage, plan.base, plan.table.clone());
            annulus_ground::point("changes: planned").await;
            match self.decide(Command::Commit { stage, base, table }, deadline).await {
                Ok(index) => return Ok(Changed { index, plan }),
                // A flip or another operator has changed the plan. The id of the next plan shows which.
                Err(ProposeError::Refused(Refusal::PlanChanged)) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Start the leave of a node (this one if `None`): it hands off its partitions, then ends.
    pub(super) async fn leave(&self, name: Option<&str>, deadline: Instant) -> Result<NodeId, ProposeError> {
        let view = self.views.load();
        let node = match name {
            None => self.me,
            Some(name) => {
                let unknown = || Refusal::NotMember(name.to_owned());
                view.state.member_by_name(name).ok_or_else(unknown)?.id
            }
        };
        // A node that is still joining has nothing to hand off.
        if view.member(node).is_some_and(|member| member.status == MemberStatus::Joining) {
            return self.change(Change::Leave { node }, deadline).await.map(|_| node);
        }
        let mut repeated = false;
        loop {
            match self.proposer.propose(Command::Leave { node }, deadline).await {
                // A leave may be repeated; a leader that ends because its own leave is done may lose the reply.
                Err(ProposeError::Unknown) if Instant::now() < deadline => repeated = true,
                // The node has left in the meantime.
                Err(ProposeError::Refused(Refusal::NotMember(_))) if repeated => return Ok(node),
                reply => return reply.map(|_| node),
            }
        }
    }

    /// Propose a command, and wait until this node has applied it. Return the entry's index.
    pub(super) async fn decide(&self, command: Command, deadline: Instant) -> Result<u64, ProposeError> {
        let (index, _) = self.proposer.propose(command, deadline).await?;
        // The command is committed. This node's copy may include it only after the deadline.
        let _ = self.views.wait_applied(index, deadline).await;
        Ok(index)
    }
}

async fn make_plan(view: Arc<View>, changes: Vec<Change>) -> Result<Plan, Refusal> {
    // The plan is made off the caller's thread, because it takes long for a large ring.
    let made = annulus_ground::blocking(move || plan(&view.state, &changes)).await;
    made.unwrap_or_else(|error| Err(Refusal::BadSetting(format!("no plan could be made: {error}"))))
}
