//! Operations of the admin service on the node as a whole.

use std::net::SocketAddr;

use annulus_core::state::Refusal;
use tokio::time::Instant;

use super::{JoinWish, Joiner};
use annulus_admin::{AdminError, NodeControl, Pending, Restart};
use annulus_cluster::JoinError;

impl NodeControl for Joiner {
    fn join<'a>(
        &'a self,
        address: SocketAddr,
        token: &'a str,
        discard: bool,
        stage: bool,
        deadline: Instant,
    ) -> Pending<'a, Result<Restart, AdminError>> {
        Box::pin(async move {
            match self.join_as(address, token, JoinWish { discard, stage }, deadline).await {
                Ok(accepted) => Ok(Box::new(accepted) as Restart),
                Err(error) => Err(explain(&error)),
            }
        })
    }
}

/// Convert a failed join to an error of the admin protocol.
fn explain(error: &JoinError) -> AdminError {
    let code = match error {
        JoinError::Unknown(_) => return AdminError::unknown("deadline-exceeded", error.to_string()),
        JoinError::Token(_) | JoinError::Refused(Refusal::BadSetting(_)) => "bad-arguments",
        JoinError::Connect(_) => "unreachable",
        // The member's reason states the cause: it has no majority, or it is starting or stopping. This
        // node's voters are not involved.
        JoinError::Unavailable(_) => {
            let message =
                format!("{error}. Nothing was changed; try again in a moment, or ask another member");
            return AdminError::not_applied("not-ready", message);
        }
        JoinError::Busy => "not-ready",
        JoinError::Codec(_) | JoinError::Identity(_) | JoinError::DataDir(_) => "internal",
        JoinError::InCluster(_)
        | JoinError::HasModules(_)
        | JoinError::AlreadyMember
        | JoinError::Itself(_)
        | JoinError::UnderWay
        | JoinError::OtherCluster(_)
        | JoinError::Refused(_) => "not-allowed",
    };
    AdminError::not_applied(code, error.to_string())
}
