//! Conversion of errors of the node's parts to errors of the admin protocol.

use annulus_core::request::{AppliedState, RequestError};
use annulus_core::state::Refusal;

use crate::{AdminError, RefusalDetail};
use annulus_cluster::{DeadlineExceeded, IssueError, ProposeError};

impl From<RequestError> for AdminError {
    fn from(error: RequestError) -> Self {
        Self {
            code: word(&error.code),
            message: error.message,
            state: match error.state {
                AppliedState::NotApplied => "not-applied",
                AppliedState::Applied => "applied",
                AppliedState::Unknown => "unknown",
            }
            .to_owned(),
            refusal: error.refusal.map(|refusal| {
                Box::new(RefusalDetail {
                    code: refusal.code,
                    message: refusal.message,
                    detail: refusal.detail.map(serde_bytes::ByteBuf::from),
                })
            }),
        }
    }
}

/// Return the kebab-case name of a unit variant.
pub(super) fn word<T: serde::Serialize>(code: &T) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "internal".to_owned(),
    }
}

impl From<ProposeError> for AdminError {
    fn from(error: ProposeError) -> Self {
        let message = error.to_string();
        match error {
            ProposeError::NoLeader | ProposeError::NoQuorum => Self::not_applied("no-quorum", message),
            ProposeError::Outside => Self::not_applied("not-allowed", message),
            ProposeError::Joining(_) => Self::not_applied("not-ready", message),
            ProposeError::Refused(refusal) => refusal.into(),
            ProposeError::Unknown => Self::unknown("deadline-exceeded", message),
        }
    }
}

impl From<Refusal> for AdminError {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::NotMember(_) => "unknown-node",
            Refusal::NoModule(_) => "unknown-module",
            Refusal::BadSetting(_) => "bad-arguments",
            Refusal::NothingStaged => "nothing-staged",
            Refusal::PlanChanged => "plan-changed",
            Refusal::Level { .. } => "state-level",
            _ => "not-allowed",
        };
        Self::not_applied(code, refusal.to_string())
    }
}

impl From<IssueError> for AdminError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Propose(error) => error.into(),
            other => Self::not_applied("internal", other.to_string()),
        }
    }
}

impl From<DeadlineExceeded> for AdminError {
    fn from(error: DeadlineExceeded) -> Self {
        Self::unknown("deadline-exceeded", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use annulus_core::request::ErrorCode;

    use super::*;

    #[test]
    fn codes_and_states_are_the_documented_words() {
        let error = AdminError::from(RequestError::unknown(ErrorCode::NotEnoughReplicas, "gone"));
        assert_eq!((error.code.as_str(), error.state.as_str()), ("not-enough-replicas", "unknown"));
        let error = AdminError::from(ProposeError::NoQuorum);
        assert_eq!((error.code.as_str(), error.state.as_str()), ("no-quorum", "not-applied"));
    }
}
