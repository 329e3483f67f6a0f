//! Tokens, joining and leaving.

use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::state::{Change, MemberStatus};
use annulus_core::wording::counted;
use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::plan::by_name;
use super::{AdminService, CHANGE_LIMIT, HEARTBEAT, name_of};
use crate::plan_rows::StagedRow;
use crate::rows::{MemberRow, TokenRow};
use crate::{AdminError, Restart};
use annulus_cluster::{Ended, Token, View};

/// Arguments of `join`.
pub(super) struct Join<'a> {
    pub(super) address: &'a str,
    pub(super) token: &'a str,
    pub(super) discard: bool,
    pub(super) stage: bool,
}

impl AdminService {
    pub(super) async fn token(&self, ttl: Duration, uses: Option<u32>) -> Result<TokenRow, AdminError> {
        let view = self.view();
        let limit = Instant::now() + CHANGE_LIMIT;
        let issued = self.parts.cluster.issue_counted_token(ttl, uses, limit).await?;
        let now = Duration::from_millis(annulus_ground::wall_ms());
        Ok(TokenRow {
            token: issued.token.to_string(),
            expires_ms: u64::try_from((now + ttl).as_millis()).unwrap_or(u64::MAX),
            address: view.member(view.me).map(|member| member.listen.clone()).unwrap_or_default(),
            uses: issued.uses,
        })
    }

    /// Join another cluster. Return once the node has been admitted; its restart completes the join. Return `None` if
    /// the node was already in that cluster and still joins.
    pub(super) async fn join(
        &self,
        Join { address, token, discard, stage }: Join<'_>,
        deadline: Instant,
        answer: &mut Answer,
    ) -> Result<Option<Restart>, AdminError> {
        let view = self.view();
        let me = view.member(view.me).filter(|me| me.status == MemberStatus::Joining);
        let waits_there = |token: Token| token.cluster == view.state.cluster;
        if let Some(me) = me
            && token.parse().is_ok_and(waits_there)
        {
            // The node is already in that cluster. `stage` decides whether its join waits for a commit.
            let (change, limit) = (Change::Join { node: me.id }, Instant::now() + CHANGE_LIMIT);
            if stage {
                self.parts.cluster.stage(change, limit).await?;
            } else if me.waits() {
                self.parts.cluster.change(change, limit).await?;
            }
            return Ok(None);
        }
        let found = timeout(CHANGE_LIMIT, tokio::net::lookup_host(address)).await;
        let member =
            found.ok().and_then(Result::ok).and_then(|mut addresses| addresses.next()).ok_or_else(|| {
                AdminError::not_applied(
                    "bad-arguments",
                    format!("{address:?} is not the address of a node; use HOST:PORT"),
                )
            })?;
        let joining = self.parts.control.join(member, token, discard, stage, deadline);
        answer.while_working("asking to be admitted", joining).await.map(Some)
    }

    pub(super) async fn stage_leave(&self, name: Option<&str>) -> Result<StagedRow, AdminError> {
        let view = self.view();
        let node = name.map_or(Ok(view.me), |name| by_name(&view, name))?;
        self.stage(Change::Leave { node }).await
    }

    /// Refuse that a node leaves while it is down: its handoffs would wait for it forever. A staged leave is not
    /// refused; its plan shows a warning.
    fn can_hand_over(&self, view: &View, node: NodeId) -> Result<(), AdminError> {
        let leaves = view.member(node).is_some_and(|member| member.status == MemberStatus::Leaving);
        let holds = view.state.ring.partitions.iter().any(|partition| partition.replicas.contains(&node));
        if leaves || !holds || self.is_up(view, node) {
            return Ok(());
        }
        let name = name_of(view, node);
        let message = format!(
            "{name} does not answer, so it cannot hand off its partitions: start it again; or, if it is gone for \
             good, `annulus down {name}` and `annulus replace {name} NEW`, or `annulus remove {name}`, discard \
             the items that only it held"
        );
        Err(AdminError::not_applied("not-allowed", message))
    }

    /// Mark a node that does not answer as down.
    pub(super) async fn down(&self, name: &str) -> Result<MemberRow, AdminError> {
        let view = self.view();
        let node = by_name(&view, name)?;
        if self.is_up(&view, node) {
            let message = format!("{name} is up: only a node that does not answer is marked down");
            return Err(AdminError::not_applied("not-allowed", message));
        }
        self.parts.cluster.mark(node, true, Instant::now() + CHANGE_LIMIT).await?;
        let gone = || AdminError::unknown("unknown-node", format!("{name} is no longer known to this node"));
        self.member(&self.view(), node).ok_or_else(gone)
    }

    pub(super) async fn leave(
        &self,
        name: Option<&str>,
        wait: bool,
        deadline: Instant,
        answer: &mut Answer,
    ) -> Result<MemberRow, AdminError> {
        let mut views = self.parts.cluster.watch();
        let mut ended = self.parts.cluster.ended();
        if let Some(name) = name {
            let view = self.view();
            self.can_hand_over(&view, by_name(&view, name)?)?;
        }
        let node = self.parts.cluster.leave(name, deadline.min(Instant::now() + CHANGE_LIMIT)).await?;
        let unknown =
            || AdminError::unknown("unknown-node", format!("node {node} is no longer known to this node"));
        let mut most = 0;
        loop {
            let view = views.borrow_and_update().clone();
            let status = view.state.members.get(&node).map(|member| member.status);
            let left = matches!(status, None | Some(MemberStatus::Removed));
            // A node that has left may never receive the entry of its removal: members do not send entries to a
            // node that is not a member.
            if node == view.me && *ended.borrow_and_update() == Some(Ended::Removed) {
                let row = self.member(&view, node).ok_or_else(unknown)?;
                return Ok(MemberRow { status: MemberStatus::Removed.to_string(), alive: false, ..row });
            }
            if left || (!wait && status == Some(MemberStatus::Leaving)) {
                return self.member(&view, node).ok_or_else(unknown);
            }
            let holds = view
                .state
                .ring
                .partitions
                .iter()
                .filter(|partition| partition.replicas.contains(&node))
                .count();
            most = most.max(holds);
            let away = !self.is_up(&view, node);
            let what =
                if away { "waiting for the node, which does not answer" } else { "handing off partitions" };
            answer.progress(what, (most - holds) as u64, most as u64).await;
            if Instant::now() >= deadline {
                let (name, holds) = (name_of(&view, node), counted(holds, "partition"));
                let how = if away {
                    format!(
                        "it does not answer: start it again, or, if it is gone for good, `annulus remove {name}` \
                         discards the items that only it held"
                    )
                } else {
                    "the handoffs continue, and `annulus transfers` shows them".to_owned()
                };
                let message = format!("{name} is leaving and still holds {holds}; {how}");
                return Err(AdminError {
                    state: "applied".to_owned(),
                    ..AdminError::unknown("deadline-exceeded", message)
                });
            }
            // A timeout only leads to the next heartbeat.
            let news = async {
                tokio::select! { _ = views.changed() => {}, _ = ended.changed() => {} }
            };
            let _ = timeout(HEARTBEAT.min(deadline.saturating_duration_since(Instant::now())), news).await;
        }
    }
}
