//! Close codes: the reason for closing a connection, as a code for programs and a text for people.

use quinn::{ConnectionError, VarInt};

use super::wire::Connection;

/// The application code of a CONNECTION_CLOSE frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Close {
    /// The node or client stops.
    Done = 0,
    /// The peer violated the protocol.
    Protocol = 1,
    /// The two sides have no protocol version in common.
    Version = 2,
    /// The peer belongs to another cluster.
    Cluster = 3,
    /// The certificate contradicts the hello, or the peer is not the one that was dialled.
    Identity = 4,
    /// The process has an outdated disk or boot id.
    OlderBoot = 5,
    /// A newer process of the node has replaced the one of this connection.
    Superseded = 6,
    /// The pair has a second connection, which is used instead.
    Spare = 7,
    /// There are too many connections of this role.
    Busy = 8,
    /// The peer's authority is no longer trusted.
    Banned = 9,
    /// The hello took too long.
    Slow = 10,
    /// The peer's role does not allow the request.
    Forbidden = 11,
    /// Nothing arrived from the peer for too long.
    Silent = 12,
    /// The node was removed from the cluster.
    Removed = 13,
    /// Another process of the node is connected and responds.
    Twin = 14,
    /// A newer lineage of the cluster does not include the node.
    Outside = 15,
    /// The node was removed here, and belongs to a newer lineage than this side.
    Rival = 16,
}

impl Close {
    /// Close the connection with a reason for the peer's log. A connection that has ended keeps its first
    /// reason.
    pub(super) fn close(self, connection: &Connection, reason: &str) {
        if connection.close_reason().is_some() {
            return;
        }
        connection.close(VarInt::from_u32(self as u32), reason.as_bytes());
    }

    /// Return true if the peer closed the connection with this code.
    pub(super) fn is(self, error: &ConnectionError) -> bool {
        matches!(error, ConnectionError::ApplicationClosed(close)
            if close.error_code == VarInt::from_u32(self as u32))
    }
}

/// Return the peer's reason alone; empty if the peer did not close the connection.
pub(super) fn reason(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        _ => String::new(),
    }
}

/// Describe the end of a connection for people.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) if close.reason.is_empty() => {
            "closed by the peer".to_owned()
        }
        ConnectionError::ApplicationClosed(close) => {
            format!("closed by the peer: {}", String::from_utf8_lossy(&close.reason))
        }
        ConnectionError::TimedOut => "the peer fell silent".to_owned(),
        ConnectionError::Reset => "the peer was restarted".to_owned(),
        ConnectionError::LocallyClosed => "closed by this node".to_owned(),
        other => other.to_string(),
    }
}
