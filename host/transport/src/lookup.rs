//! Resolution of host names.

use std::net::SocketAddr;
use std::time::Duration;

use annulus_core::address::HostPort;
use tokio::time::timeout;

/// Reasons for which a name has no address at the moment.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The resolver reported an error or no address.
    #[error("the name in {at} cannot be looked up: {why}")]
    Unknown {
        /// The name.
        at: HostPort,
        /// The resolver's error.
        why: String,
    },
    /// The resolver did not respond in time.
    #[error("the name in {at} was not looked up within {limit:?}")]
    Timeout {
        /// The name.
        at: HostPort,
        /// The limit.
        limit: Duration,
    },
}

/// Return the current addresses of a name, at least one, IPv4 first. A literal address resolves to itself.
///
/// # Errors
/// If the name has no address, or none is found within `limit`.
pub async fn look_up(at: &HostPort, limit: Duration) -> Result<Vec<SocketAddr>, LookupError> {
    if let Some(address) = at.literal() {
        return Ok(vec![address]);
    }
    let unknown = |why: String| LookupError::Unknown { at: at.clone(), why };
    let found = timeout(limit, tokio::net::lookup_host((at.host(), at.port()))).await;
    let found = found.map_err(|_| LookupError::Timeout { at: at.clone(), limit })?;
    let mut found: Vec<SocketAddr> = found.map_err(|error| unknown(error.to_string()))?.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.dedup();
    if found.is_empty() { Err(unknown("it has no address".to_owned())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_name_has_addresses_or_an_error_that_names_it() {
        let at = |text: &str| text.parse::<HostPort>().unwrap();
        let local = look_up(&at("localhost:77"), LIMIT).await.unwrap();
        assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 77), "{local:?}");
        assert_eq!(look_up(&at("[::1]:7"), LIMIT).await.unwrap(), ["[::1]:7".parse().unwrap()]);
        let error = look_up(&at("no-such-host.invalid:7"), LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("no-such-host.invalid:7"), "{error}");
    }
}
