//! Changes of the membership that an operator asks for: planned here, decided by the log.
//!
//! A plan is made from this node's copy of the state and names what it was made from; if that is
//! no longer so when its turn comes, the entry is refused and the plan is made again. Flips of
//! a rebalancing that goes on all the while change what it was made from and not what it does, so
//! for those it is simply tried again.

use std::sync::Arc;

use annulus_core::ids::NodeId;
use annulus_core::state::{Change, Command, Plan, Refusal, plan};
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Cluster, ProposeError, View};

/// A change that was decided.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Index of its entry.
    pub index: u64,
    /// What it does.
    pub plan: Plan,
}

impl Cluster {
    /// What is staged would do this; `None` where nothing is staged. The newest state that can be
    /// had until the deadline is looked at.
    pub fn plan(&self, deadline: Instant) -> BoxFuture<'_, Result<Option<Plan>, Refusal>> {
        Box::pin(async move {
            self.learn_news(deadline).await;
            let view = self.view();
            if view.state.staged.is_empty() {
                return Ok(None);
            }
            let staged = view.state.staged.clone();
            make_plan(view, staged).await.map(Some)
        })
    }

    /// What one change would do if it were made now.
    pub fn plan_of(&self, change: Change) -> BoxFuture<'_, Result<Plan, Refusal>> {
        Box::pin(async move { make_plan(self.view(), vec![change]).await })
    }

    /// Stages a change; its entry's index.
    pub fn stage(&self, change: Change, deadline: Instant) -> BoxFuture<'_, Result<u64, ProposeError>> {
        Box::pin(async move { self.decided(Command::Stage { change }, deadline).await })
    }

    /// Forgets what is staged.
    pub fn clear_staged(&self, deadline: Instant) -> BoxFuture<'_, Result<u64, ProposeError>> {
        Box::pin(async move { self.decided(Command::ClearStaged, deadline).await })
    }

    /// Marks a node as down, or takes the mark off.
    pub fn mark(
        &self,
        node: NodeId,
        down: bool,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<u64, ProposeError>> {
        Box::pin(async move {
            let command = if down { Command::Down { node } } else { Command::Up { node } };
            self.decided(command, deadline).await
        })
    }

    /// The losses up to an index have been seen.
    pub fn acknowledge(&self, up_to: u64, deadline: Instant) -> BoxFuture<'_, Result<u64, ProposeError>> {
        Box::pin(async move { self.decided(Command::Acknowledge { up_to }, deadline).await })
    }

    /// Makes one change, as one rebalancing.
    pub fn change(&self, change: Change, deadline: Instant) -> BoxFuture<'_, Result<Changed, ProposeError>> {
        Box::pin(async move {
            let down = self.view().state.is_of_one_down(change);
            loop {
                let plan = self.plan_of(change).await?;
                // What was asked of a member that was there is not done by force because it is down by now.
                let view = self.view();
                if view.state.is_of_one_down(change) != down {
                    return Err(Refusal::PlanChanged.into());
                }
                let (base, table) = (plan.base, plan.table.clone());
                let down = (view.state.level >= 3).then_some(down);
                let command = Command::Change { change, base, table, down };
                annulus_ground::point("changes: planned").await;
                match self.decided(command, deadline).await {
                    Ok(index) => return Ok(Changed { index, plan }),
                    Err(ProposeError::Refused(Refusal::RingChanged)) if Instant::now() < deadline => {
                        self.learn_news(deadline).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// Commits what is staged: the plan of this id, or the one that there is.
    pub fn commit<'a>(
        &'a self,
        id: Option<&'a str>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Changed, ProposeError>> {
        Box::pin(async move {
            let mut id = id.map(str::to_owned);
            loop {
                let plan = self.plan(deadline).await?.ok_or(Refusal::NothingStaged)?;
                let found = plan.id();
                if *id.get_or_insert_with(|| found.clone()) != found {
                    return Err(Refusal::PlanChanged.into());
                }
                let (stage, base, table) = (plan.stage, plan.base, plan.table.clone());
                annulus_ground::point("changes: planned").await;
                match self.decided(Command::Commit { stage, base, table }, deadline).await {
                    Ok(index) => return Ok(Changed { index, plan }),
                    // By a flip, or by somebody: the plan made anew will tell.
                    Err(ProposeError::Refused(Refusal::PlanChanged)) if Instant::now() < deadline => {}
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// Proposes, and waits until this node has applied it.
    async fn decided(&self, command: Command, deadline: Instant) -> Result<u64, ProposeError> {
        let (index, _) = self.propose(command, deadline).await?;
        // The answer is the cluster's; this node's own copy may be later.
        let _ = self.wait_applied(index, deadline).await;
        Ok(index)
    }
}

async fn make_plan(view: Arc<View>, changes: Vec<Change>) -> Result<Plan, Refusal> {
    // Off the caller's thread: for a large ring it is work.
    let made = annulus_ground::blocking(move || plan(&view.state, &changes)).await;
    made.unwrap_or_else(|error| Err(Refusal::BadSetting(format!("no plan could be made: {error}"))))
}
