//! A hold on the node's single-node cluster, for as long as the node waits to be admitted elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::state::Command;
use tokio::time::Instant;

use super::gate::JoinGate;
use super::propose::{ProposeError, Proposer};

/// Longest wait for the entry that shows that no earlier one is still in progress.
const BARRIER: Duration = Duration::from_secs(5);

/// While this exists, the node's cluster accepts no deploy and admits no node.
pub struct JoinHold {
    gate: Arc<JoinGate>,
    kept: bool,
}

impl JoinHold {
    /// Take the hold for a join through `member`. On return, the node's view includes everything that its
    /// cluster has accepted before. On an error, nothing is held.
    pub(super) async fn take(
        proposer: &Proposer,
        member: SocketAddr,
        deadline: Instant,
    ) -> Result<Self, ProposeError> {
        proposer.gate().close(member);
        let hold = Self { gate: proposer.gate().clone(), kept: false };
        let deadline = deadline.min(Instant::now() + BARRIER);
        // A command that is still in progress may yet be applied.
        if !proposer.gate().drained(deadline).await {
            return Err(ProposeError::Unknown);
        }
        // This command changes nothing, and follows every entry that did.
        match proposer.propose(Command::Acknowledge { up_to: 0 }, deadline).await {
            Ok((index, _)) => {
                proposer.views().wait_applied(index, deadline).await.map_err(|_| ProposeError::Unknown)?;
            }
            Err(ProposeError::Unknown) => return Err(ProposeError::Unknown),
            // A cluster that cannot decide adds nothing either.
            Err(_) => {}
        }
        Ok(hold)
    }

    /// Keep the hold until the node restarts.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for JoinHold {
    fn drop(&mut self) {
        if !self.kept {
            self.gate.open();
        }
    }
}
