//! What is decided on a request's way: by the holder that gets it, and by the coordinator that
//! sent it (R2, R10). Pure, so that what is simulated is what runs.

use crate::mutants::{self, Mutant};
use crate::request::{AppliedState, ErrorCode, RequestError};

/// What a node does with a command that came for one of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Runs it.
    Serve,
    /// The sender knows a later change of the partition: learns it, then looks again.
    Later,
    /// Answers `stale-ring` with the version that it knows; nothing was applied.
    Stale(u64),
}

/// `asked`: the version that the sender routed by. `version`, `held`: what this node has
/// applied of the partition, and whether it is its owner by that.
pub fn gate(asked: u64, version: u64, held: bool) -> Gate {
    if asked > version {
        Gate::Later
    } else if (asked < version || !held) && !mutants::on(Mutant::ServeStaleVersions) {
        Gate::Stale(version)
    } else {
        Gate::Serve
    }
}

/// What a coordinator does with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The caller gets it.
    Answer,
    /// Learns the log up to this version, or waits a moment where it is not behind, and asks
    /// again.
    CatchUp(u64),
    /// Who cannot be reached may have left, and this node be the last to hear: asks the leader for
    /// news, and asks again if there is another holder. Otherwise the caller gets it.
    AskForNews,
}

/// By itself a coordinator asks again only after an answer that says "not applied" (R10).
pub fn next(error: &RequestError) -> Next {
    match error.code {
        ErrorCode::StaleRing => Next::CatchUp(error.version),
        ErrorCode::NotEnoughReplicas if error.state == AppliedState::NotApplied => Next::AskForNews,
        _ if error.state == AppliedState::Unknown && mutants::on(Mutant::RetryUnknown) => Next::CatchUp(0),
        _ => Next::Answer,
    }
}

/// How a request to another node came to no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The node cannot be reached: nothing was sent.
    Unreachable,
    /// Sent, then the connection was lost.
    Lost,
    /// Sent, and the node let it fall.
    Dropped,
    /// The deadline came after it was sent.
    Late,
    /// The deadline came before it was sent.
    LateUnsent,
    /// Too much waits; not sent, or not handled.
    Overloaded,
    /// Too large to be sent.
    TooLarge,
}

impl NoAnswer {
    /// What the caller is told: the code, and what became of the state. A read (`writes` is
    /// false) left nothing behind whatever happened.
    pub fn tells(self, writes: bool) -> (ErrorCode, AppliedState) {
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
    fn only_the_holder_at_that_very_version_serves() {
        assert_eq!(gate(5, 5, true), Gate::Serve);
        assert_eq!(gate(5, 5, false), Gate::Stale(5));
        assert_eq!(gate(4, 5, true), Gate::Stale(5));
        assert_eq!(gate(6, 5, true), Gate::Later);
        assert_eq!(gate(6, 5, false), Gate::Later);
    }

    #[test]
    fn what_may_have_been_applied_is_never_asked_again() {
        for how in [
            NoAnswer::Unreachable,
            NoAnswer::Lost,
            NoAnswer::Dropped,
            NoAnswer::Late,
            NoAnswer::LateUnsent,
            NoAnswer::Overloaded,
            NoAnswer::TooLarge,
        ] {
            let (code, state) = how.tells(true);
            let error = RequestError { state, ..RequestError::not_applied(code, "") };
            let sent = matches!(how, NoAnswer::Lost | NoAnswer::Dropped | NoAnswer::Late);
            assert_eq!(state == AppliedState::Unknown, sent, "{how:?}");
            assert_eq!(next(&error) == Next::AskForNews, how == NoAnswer::Unreachable, "{how:?}");
            assert_eq!(how.tells(false).1, AppliedState::NotApplied, "{how:?}");
        }
        assert_eq!(next(&RequestError::stale_ring(7)), Next::CatchUp(7));
    }
}
