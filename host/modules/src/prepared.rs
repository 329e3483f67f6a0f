//! What a member's answer to the wish to get and compile a component means for a deploy.

use bytes::Bytes;

use annulus_core::codec;
use annulus_transport::CallError;

/// Does it have the component? If not, nobody was there to take the wish: its process is away, or only starting
/// or joining. It follows by itself once it is up, and holds up no deploy until then.
///
/// # Errors
/// Why it cannot run the component.
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
    fn a_member_that_is_away_or_still_starts_is_passed_by() {
        for away in
            [CallError::Unreachable(String::new()), CallError::Lost(String::new()), CallError::NoAnswer]
        {
            assert_eq!(prepared(Err(away)), Ok(false));
        }
    }

    #[test]
    fn a_member_that_says_no_or_nothing_in_time_refuses_the_release() {
        assert_eq!(said(Ok(())), Ok(true));
        assert_eq!(said(Err("too old".to_owned())), Err("too old".to_owned()));
        assert!(prepared(Ok(Bytes::from_static(b"\xff"))).is_err());
        assert!(prepared(Err(CallError::Deadline { sent: true })).is_err());
    }
}
