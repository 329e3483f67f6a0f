//! The members' progress with a release.

use std::time::Duration;

use annulus_core::codec;
use annulus_core::ids::{Digest, ModuleUid, NodeId};
use annulus_transport::{Lane, kind};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::{DeployError, Deployed, Progress, SWAP_LIMIT, encoded};
use crate::messages::AwaitRunning;
use crate::{Modules, Running};

/// Pause before the same member is asked again after its answer was lost.
const ASK_AGAIN: Duration = Duration::from_millis(200);

impl Modules {
    /// Wait until every reachable member runs a release.
    pub(super) async fn await_running(
        &self,
        module: ModuleUid,
        version: u64,
        deadline: Instant,
        tell: &impl Fn(Progress),
    ) -> Result<Deployed, SwapFailure> {
        let view = self.inner.cluster.view();
        let deadline = deadline.min(Instant::now() + SWAP_LIMIT);
        let members: Vec<_> =
            view.state.live_members().map(|member| (member.id, member.name.clone())).collect();
        let of = members.len();
        let mut asked: FuturesUnordered<_> = members
            .into_iter()
            .map(|(id, name)| async move { (name, self.node_running(id, module, version, deadline).await) })
            .collect();
        let mut ran = Deployed {
            name: String::new(),
            version,
            digest: Digest([0; 32]),
            swapped_items: 0,
            longest_stall_us: 0,
            lost: Vec::new(),
            unreached: Vec::new(),
            unchanged: false,
        };
        let mut done = 0;
        while let Some((node, running)) = asked.next().await {
            let Some(running) = running else {
                ran.unreached.push(node);
                continue;
            };
            if let Some((failed, reason)) = running.failed
                && failed == version
            {
                return Err(SwapFailure::Failed { node, reason });
            }
            if running.version < version {
                return Err(SwapFailure::Slow { node, reason: "it is still working on it".to_owned() });
            }
            ran.swapped_items += running.swapped_items;
            ran.lost.extend(running.lost);
            ran.longest_stall_us = ran.longest_stall_us.max(running.longest_stall_us);
            done += 1;
            tell(Progress::Running { done, of });
        }
        Ok(ran)
    }

    /// Return the progress of a node once it runs the release, has failed, or the deadline has passed. Return `None` if
    /// the node cannot be reached.
    async fn node_running(
        &self,
        node: NodeId,
        module: ModuleUid,
        version: u64,
        deadline: Instant,
    ) -> Option<Running> {
        let view = self.inner.cluster.view();
        if node == view.me {
            return Some(self.await_here(module, version, deadline).await);
        }
        let slack = deadline + Duration::from_secs(5);
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            let ask = AwaitRunning {
                module,
                version,
                wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            };
            let message = Bytes::from(encoded(&ask));
            let peer = view.peer(node)?;
            let call = self.inner.transport.call(&peer, Lane::Control, kind::MODULE_RUNNING, message, slack);
            let error = match call.await {
                Ok(answer) => return codec::decode(&answer).ok(),
                Err(error) => error,
            };
            // A member that the failure detector reports as up is reachable: its connection may have been replaced, or
            // is not open yet.
            if !self.inner.cluster.liveness().is_up(node) {
                return None;
            }
            tracing::debug!(%error, %node, "a member did not answer which release it runs; asking again");
            if Instant::now() + ASK_AGAIN >= deadline {
                return Some(Running::default());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Ask each live member for the release that it runs. The entry of a member that cannot be reached is `None`.
    pub fn running_everywhere(
        &self,
        module: ModuleUid,
        deadline: Instant,
    ) -> BoxFuture<'_, Vec<(String, Option<Running>)>> {
        Box::pin(async move {
            let view = self.inner.cluster.view();
            let asked = view.state.live_members().map(|member| async move {
                let at_once = deadline.min(Instant::now() + Duration::from_secs(2));
                let ask = self.node_running(member.id, module, 0, at_once);
                let running = tokio::time::timeout_at(at_once, ask).await.ok().flatten();
                (member.name.clone(), running)
            });
            futures_util::future::join_all(asked).await
        })
    }
}

/// The reason that a release does not run everywhere.
pub(super) enum SwapFailure {
    Failed { node: String, reason: String },
    Slow { node: String, reason: String },
}

impl SwapFailure {
    /// Convert the failure of a release that was rolled back.
    pub(super) fn rolled_back(self) -> DeployError {
        let (Self::Failed { node, reason } | Self::Slow { node, reason }) = self;
        DeployError::RolledBack { node, reason }
    }

    /// Convert the failure of a release that stays current. `left` is the reason that it stays.
    pub(super) fn of(self, name: String, version: u64, left: &str) -> DeployError {
        match self {
            Self::Failed { node, reason } => {
                DeployError::Unable { name, version, node, reason, left: left.to_owned() }
            }
            Self::Slow { node, reason } => DeployError::Slow { node, reason },
        }
    }
}
