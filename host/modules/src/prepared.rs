//! Interpretation of a member's answer to a `Prepare` request.

use bytes::Bytes;

use annulus_core::codec;
use annulus_transport::CallError;

/// Return true if the member has prepared the component, false if it is away: its process is down, starting
/// or joining. Such a member prepares the component once it is up, and does not delay the deploy.
///
/// # Errors
/// If the member cannot run the component, with the reason.
pub(super) fn prepared(answer: Result<Bytes, CallError>) -> Result<bool, String> {
    match answer {
        Ok(answer) => {
            let said = codec::decode(&answer).unwrap_or_else(|error| Err(error.to_string()));
            said.map(|()| true)
        }
        Err(CallError::Unreachable(_) | CallError::Lost(_) | CallError::NoAnswer) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn said(answer: Result<(), String>) -> Result<bool, String> {
        prepared(Ok(codec::encode(&answer).unwrap().into()))
    }

    #[test]
    fn a_member_that_is_down_or_starting_does_not_hold_up_the_deploy() {
        for away in
            [CallError::Unreachable(String::new()), CallError::Lost(String::new()), CallError::NoAnswer]
        {
            assert_eq!(prepared(Err(away)), Ok(false));
        }
    }

    #[test]
    fn a_refusal_or_timeout_of_a_member_fails_the_deploy() {
        assert_eq!(said(Ok(())), Ok(true));
        assert_eq!(said(Err("too old".to_owned())), Err("too old".to_owned()));
        assert!(prepared(Ok(Bytes::from_static(b"\xff"))).is_err());
        assert!(prepared(Err(CallError::Deadline { sent: true })).is_err());
    }
}
