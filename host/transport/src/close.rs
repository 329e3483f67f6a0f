//! Why a connection is closed: a code that programs compare and a reason that people read.

use quinn::{ConnectionError, VarInt};

use super::wire::Connection;

/// The application code of a CONNECTION_CLOSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Close {
    /// The node or client ends.
    Done = 0,
    /// The peer said what it may not say.
    Protocol = 1,
    /// No protocol version in common.
    Version = 2,
    /// The peer belongs to another cluster.
    Cluster = 3,
    /// The certificate does not say what the hello says, or the peer is not whom we dialled.
    Identity = 4,
    /// This run of the node is not its newest.
    OlderBoot = 5,
    /// The node was started again: this connection is its earlier run's.
    Superseded = 6,
    /// The pair has a second connection, which is used instead.
    Spare = 7,
    /// Too many connections of this sort.
    Busy = 8,
    /// Its authority is trusted no more.
    Banned = 9,
    /// The hello took too long.
    Slow = 10,
    /// The peer's role does not allow it.
    Forbidden = 11,
    /// Nothing came from the peer for too long.
    Silent = 12,
    /// The node was removed from the cluster.
    Removed = 13,
    /// Another run of the node is connected, and answers.
    Twin = 14,
    /// A newer lineage of the cluster has removed the node, or does not know it.
    Outside = 15,
    /// The node was removed here, and goes by a newer lineage than this side.
    Rival = 16,
}

impl Close {
    /// Closes the connection, with a reason for the peer's log. One that has ended already keeps
    /// the reason of its end.
    pub(super) fn close(self, connection: &Connection, reason: &str) {
        if connection.close_reason().is_some() {
            return;
        }
        connection.close(VarInt::from_u32(self as u32), reason.as_bytes());
    }

    /// Is that why the peer closed?
    pub(super) fn is(self, error: &ConnectionError) -> bool {
        matches!(error, ConnectionError::ApplicationClosed(close)
            if close.error_code == VarInt::from_u32(self as u32))
    }
}

/// What the peer said of why it closed, without further words; empty if it closed nothing.
pub(super) fn reason(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        _ => String::new(),
    }
}

/// What happened to a connection, for people.
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
