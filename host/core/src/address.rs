//! Addresses of nodes, as people write them: the name or the IP address of a host, and a port.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The longest host name that the domain name system allows, in bytes.
const MAX_HOST_BYTES: usize = 253;

/// A host, by name or IP address, and a port. A name may resolve differently at any time, so it is resolved
/// for each connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// The text is not of the form `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a HOST:PORT, such as node1.example:8199, 127.0.0.1:8199 or [::1]:8199")]
pub struct NoHostPort(String);

impl HostPort {
    /// Return the host's name, or its IP address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Return the port, in 0..=65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Return the socket address if the host is written as an IP address, `None` if it is a name.
    pub fn literal(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port))
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for HostPort {
    type Err = NoHostPort;

    fn from_str(text: &str) -> Result<Self, NoHostPort> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let sound = |host: &str| {
            !host.is_empty()
                && host.len() <= MAX_HOST_BYTES
                && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'))
        };
        text.rsplit_once(':')
            .filter(|(host, _)| sound(host))
            .and_then(|(host, port)| Some(Self { host: host.to_owned(), port: port.parse().ok()? }))
            .ok_or_else(|| NoHostPort(text.to_owned()))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.literal() {
            Some(address) => address.fmt(f),
            None => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_and_ip_addresses_round_trip_through_text() {
        for text in ["127.0.0.1:8199", "[::1]:8199", "node1.example:8199", "a-b_c:0", "b\u{fc}cher.example:1"]
        {
            assert_eq!(text.parse::<HostPort>().map(|at| at.to_string()), Ok(text.to_owned()));
        }
        assert!("127.0.0.1:1".parse::<HostPort>().is_ok_and(|at| at.literal().is_some()));
        assert!("localhost:1".parse::<HostPort>().is_ok_and(|at| at.literal().is_none()));
    }

    #[test]
    fn text_without_a_host_or_a_port_is_rejected() {
        for text in ["", "host", ":1", "host:", "host:x", "host:65536", "::1:80", "http://host:1", "a b:1"] {
            assert!(text.parse::<HostPort>().is_err(), "{text:?}");
        }
    }
}
