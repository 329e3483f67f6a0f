//! The decisions about a request: admission by the node that receives it, and retry by the coordinator that
//! sent it (R2, R10).

use crate::mutants::{self, Mutant};
use crate::request::{AppliedState, ErrorCode, RequestError};

/// The decision of a node about a command for one of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Run the command.
    Admit,
    /// The sender knows a later change of the partition: apply the log up to that change, then decide again.
    CatchUp,
    /// Answer `stale-ring` with the version that this node has applied.
    Stale(u64),
}

/// Decide on a command. The sender routed by version `asked` of the partition; this node has applied
/// `version`, and `held` is true if it owns the partition by that version.
pub fn admit(asked: u64, version: u64, held: bool) -> Admission {
    if asked > version {
        Admission::CatchUp
    } else if (asked < version || !held) && !mutants::on(Mutant::ServeStaleVersions) {
        Admission::Stale(version)
    } else {
        Admission::Admit
    }
}

/// The decision of a coordinator about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Do not retry: return the error to the caller.
    No,
    /// Apply the log up to this version, or pause if this node is not behind, then retry.
    CatchUp(u64),
    /// The owner is unreachable and may have left without this node knowing yet. Ask the leader, and retry if
    /// the partition has another owner; otherwise return the error to the caller.
    IfOwnerChanged,
}

/// Decide whether to retry. Only a request that was not applied is retried automatically (R10).
pub fn retry(error: &RequestError) -> Retry {
    match error.code {
        ErrorCode::StaleRing => Retry::CatchUp(error.version),
        ErrorCode::NotEnoughReplicas if error.state == AppliedState::NotApplied => Retry::IfOwnerChanged,
        _ if error.state == AppliedState::Unknown && mutants::on(Mutant::RetryUnknown) => Retry::CatchUp(0),
        _ => Retry::No,
    }
}

/// The failure of a request to another node that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFailure {
    /// The node is unreachable; nothing was sent.
    Unreachable,
    /// The connection was lost after the request was sent.
    Lost,
    /// The node received the request and dropped it.
    Dropped,
    /// The deadline passed after the request was sent.
    Late,
    /// The deadline passed before the request was sent.
    LateUnsent,
    /// A queue is full; the request was not sent, or not handled.
    Overloaded,
    /// The request is too large to be sent.
    TooLarge,
}

impl CallFailure {
    /// Return the error code and the effect on the state. A read (`writes` is false) never has an effect.
    pub fn outcome(self, writes: bool) -> (ErrorCode, AppliedState) {
        let sent = if writes { AppliedState::Unknown } else { AppliedState::NotApplied };
        match self {
            Self::Unreachable => (ErrorCode::NotEnoughReplicas, AppliedState::NotApplied),
            Self::Lost => (ErrorCode::NotEnoughReplicas, sent),
            Self::Dropped => (ErrorCode::Internal, sent),
            Self::Late => (ErrorCode::DeadlineExceeded, sent),
            Self::LateUnsent => (ErrorCode::DeadlineExceeded, AppliedState::NotApplied),
            Self::Overloaded => (ErrorCode::Overloaded, AppliedState::NotApplied),
            Self::TooLarge => (ErrorCode::ValueTooLarge, AppliedState::NotApplied),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_holder_at_the_same_version_serves() {
        assert_eq!(admit(5, 5, true), Admission::Admit);
        assert_eq!(admit(5, 5, false), Admission::Stale(5));
        assert_eq!(admit(4, 5, true), Admission::Stale(5));
        assert_eq!(admit(6, 5, true), Admission::CatchUp);
        assert_eq!(admit(6, 5, false), Admission::CatchUp);
    }

    #[test]
    fn a_request_that_may_have_been_applied_is_never_retried() {
        for how in [
            CallFailure::Unreachable,
            CallFailure::Lost,
            CallFailure::Dropped,
            CallFailure::Late,
            CallFailure::LateUnsent,
            CallFailure::Overloaded,
            CallFailure::TooLarge,
        ] {
            let (code, state) = how.outcome(true);
            let error = RequestError { state, ..RequestError::not_applied(code, "") };
            let sent = matches!(how, CallFailure::Lost | CallFailure::Dropped | CallFailure::Late);
            assert_eq!(state == AppliedState::Unknown, sent, "{how:?}");
            assert_eq!(retry(&error) == Retry::IfOwnerChanged, how == CallFailure::Unreachable, "{how:?}");
            assert_eq!(how.outcome(false).1, AppliedState::NotApplied, "{how:?}");
        }
        assert_eq!(retry(&RequestError::stale_ring(7)), Retry::CatchUp(7));
    }
}
