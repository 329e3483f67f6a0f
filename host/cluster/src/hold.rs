//! What a node's own cluster of one does not do while the node asks another cluster to admit it.
//!
//! A join wipes the node's own modules and members. What was there when the join was asked for is known
//! to the operator; what came later would vanish with nobody told. So nothing comes (R18).

use std::net::SocketAddr;
use std::time::Duration;

use annulus_core::mutants::{self, Mutant};
use annulus_core::state::Command;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::{Instant, timeout_at};

use super::{Cluster, ProposeError};

/// How long the entry may take behind which nothing is under way any more.
const BARRIER: Duration = Duration::from_secs(5);

/// The join that a node waits for, and the proposals that it would wipe.
#[derive(Default)]
pub(super) struct Growth {
    joining: parking_lot::Mutex<Option<SocketAddr>>,
    /// Read while such a command is proposed.
    proposals: RwLock<()>,
}

/// While this exists, the node's cluster takes no deploy and admits no node.
pub struct JoinHold {
    cluster: Cluster,
    kept: bool,
}

impl JoinHold {
    /// Holds on until the node starts anew.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for JoinHold {
    fn drop(&mut self) {
        if !self.kept {
            *self.cluster.growth().joining.lock() = None;
        }
    }
}

/// Does it add something that a join of this node would wipe?
fn grows(command: &Command) -> bool {
    let grows = matches!(command, Command::Deploy { .. } | Command::Admit { .. });
    grows && !mutants::on(Mutant::GrowWhileJoining)
}

impl Growth {
    /// A place for a command to be proposed; `Joining` if it would be wiped.
    pub(super) async fn enter(
        &self,
        command: &Command,
        deadline: Instant,
    ) -> Result<Option<RwLockReadGuard<'_, ()>>, ProposeError> {
        if !grows(command) {
            return Ok(None);
        }
        let turn = timeout_at(deadline, self.proposals.read()).await.map_err(|_| ProposeError::NoLeader)?;
        match *self.joining.lock() {
            Some(member) => Err(ProposeError::Joining(member)),
            None => Ok(Some(turn)),
        }
    }
}

impl Cluster {
    /// Begins to wait for an answer of `member`. When this returns, the node's own view has whatever
    /// its cluster took before, and nothing comes that a join would wipe. On an error nothing is held.
    pub async fn hold_for_join(
        &self,
        member: SocketAddr,
        deadline: Instant,
    ) -> Result<JoinHold, ProposeError> {
        let growth = self.growth();
        *growth.joining.lock() = Some(member);
        let hold = JoinHold { cluster: self.clone(), kept: false };
        let deadline = deadline.min(Instant::now() + BARRIER);
        // An error: a command is still under way, and what becomes of it is not known.
        drop(timeout_at(deadline, growth.proposals.write()).await.map_err(|_| ProposeError::Unknown)?);
        // Changes nothing, and comes behind all that did.
        match self.propose(Command::Acknowledge { up_to: 0 }, deadline).await {
            Ok((index, _)) => {
                self.wait_applied(index, deadline).await.map_err(|_| ProposeError::Unknown)?;
            }
            Err(ProposeError::Unknown) => return Err(ProposeError::Unknown),
            // Where nothing can be decided, nothing comes.
            Err(_) => {}
        }
        Ok(hold)
    }
}
