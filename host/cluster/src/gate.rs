//! The gate that blocks additions to a node's cluster while the node asks another cluster to admit it.
//!
//! A join wipes the modules and members of the node's cluster. The operator knows of everything that existed
//! when the join was requested; anything added later would vanish unnoticed. So nothing may be added until
//! the join has ended (R18).

use std::net::SocketAddr;

use annulus_core::mutants::{self, Mutant};
use annulus_core::state::Command;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::{Instant, timeout_at};

/// The join that this node waits for, and the proposals that the join would wipe.
#[derive(Default)]
pub(super) struct JoinGate {
    joining: parking_lot::Mutex<Option<SocketAddr>>,
    /// Read-locked while a command that adds something is proposed.
    proposals: RwLock<()>,
}

/// The reason for which a command was not let through. Nothing was changed.
pub(super) enum Shut {
    /// The node waits for this member's answer to its join.
    Joining(SocketAddr),
    /// The deadline came before the gate could be checked.
    Deadline,
}

/// Return true for a command that adds something that a join of this node would wipe.
fn adds(command: &Command) -> bool {
    let adds = matches!(command, Command::Deploy { .. } | Command::Admit { .. });
    adds && !mutants::on(Mutant::GrowWhileJoining)
}

impl JoinGate {
    /// Let a command pass. The guard is held until the command's outcome is known.
    pub(super) async fn enter(
        &self,
        command: &Command,
        deadline: Instant,
    ) -> Result<Option<RwLockReadGuard<'_, ()>>, Shut> {
        if !adds(command) {
            return Ok(None);
        }
        let guard = timeout_at(deadline, self.proposals.read()).await.map_err(|_| Shut::Deadline)?;
        match *self.joining.lock() {
            Some(member) => Err(Shut::Joining(member)),
            None => Ok(Some(guard)),
        }
    }

    /// Close the gate for a join through `member`. Commands that have passed may still be in progress.
    pub(super) fn close(&self, member: SocketAddr) {
        *self.joining.lock() = Some(member);
    }

    /// Wait until the outcome of every command that has passed is known. Return false if the deadline comes
    /// first.
    pub(super) async fn drained(&self, deadline: Instant) -> bool {
        timeout_at(deadline, self.proposals.write()).await.is_ok()
    }

    pub(super) fn open(&self) {
        *self.joining.lock() = None;
    }
}
