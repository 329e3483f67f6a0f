//! How binding, calling, connecting and streaming fail, and what each failure leaves behind.

use std::net::SocketAddr;

use super::identity::IdentityError;

/// Why a node has no transport. Nothing is left open.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken or is not ours.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Where it should have listened.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate, its key or an authority cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No connection could be had: nothing was sent, so nothing is applied.
    #[error("peer unreachable: {0}")]
    Unreachable(String),
    /// Sent, then the connection was lost or the peer closed: unknown whether applied.
    #[error("connection lost while waiting for the answer: {0}")]
    Lost(String),
    /// Sent; the peer's handler ended without an answer: unknown whether applied.
    #[error("the peer gave no answer")]
    NoAnswer,
    /// Too much waits already, here or at the peer: not handled, so nothing is applied.
    #[error("overloaded")]
    Overloaded,
    /// The deadline came.
    #[error("deadline exceeded{}", if *sent { "" } else { " before it was sent" })]
    Deadline {
        /// False: nothing was sent, nothing is applied. True: unknown.
        sent: bool,
    },
    /// The payload is larger than a frame may be: nothing was sent.
    #[error("payload of {bytes} bytes, a frame has at most {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// Why a bulk stream ended before its time. What was received before is whole and in order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// The connection is gone.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The peer dropped its end of this stream without finishing it.
    #[error("the peer gave the stream up")]
    GivenUp,
    /// A frame or a message is larger than allowed: ours was not sent, or the peer's is refused.
    #[error("a message of {bytes} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The stream ended in the middle of a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The peer announces a message that none can be, or sends other parts than it announced.
    #[error("an unreadable announcement of a large message")]
    Unreadable,
    /// The peer is alive and took nothing for [`BULK_STALL_LIMIT`](super::limits::BULK_STALL_LIMIT).
    #[error("the peer accepts no data")]
    Stalled,
}

/// Why a client has no connection. Nothing is left open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answered in time.
    #[error("no answer from {0}")]
    Timeout(SocketAddr),
    /// The socket could not be made or the address not be used.
    #[error("cannot reach {addr}: {reason}")]
    Unreachable {
        /// Whom.
        addr: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// The node is there and refuses: wrong certificate, wrong cluster, too many connections.
    #[error("{addr} refuses the connection: {reason}")]
    Refused {
        /// Whom.
        addr: SocketAddr,
        /// In its words.
        reason: String,
    },
    /// The certificate, its key or an authority cannot be used.
    #[error("unusable credentials: {0}")]
    Identity(String),
}
