//! Errors of binding, calling, connecting and streaming, and the state that each leaves behind.

use std::net::SocketAddr;

use super::identity::IdentityError;

/// Reasons for which a transport cannot start. Nothing is left open.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is in use or not local.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The certificate, its key or an authority is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Reasons for which a call has no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no connection. Nothing was sent, so nothing is applied.
    #[error("peer unreachable: {0}")]
    Unreachable(String),
    /// The connection was lost after the request was sent. It is unknown whether the request was applied.
    #[error("connection lost while waiting for the answer: {0}")]
    Lost(String),
    /// The peer's handler ended without a response. It is unknown whether the request was applied.
    #[error("the peer gave no answer")]
    NoAnswer,
    /// Too many requests are queued on either side. The request was not executed, so nothing is applied.
    #[error("overloaded")]
    Overloaded,
    /// The deadline passed.
    #[error("deadline exceeded{}", if *sent { "" } else { " before it was sent" })]
    Deadline {
        /// False if nothing was sent, so nothing is applied. True if it is unknown whether the request was
        /// applied.
        sent: bool,
    },
    /// The payload exceeds the frame limit. Nothing was sent.
    #[error("payload of {bytes} bytes, a frame has at most {limit}")]
    TooLarge {
        /// Size of the payload.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Reasons for which a bulk stream fails. Frames received before the failure are complete and in order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// The connection was lost.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The peer dropped its half of the stream without finishing it.
    #[error("the peer gave the stream up")]
    GivenUp,
    /// A frame or message exceeds the limit. An outgoing one was not sent; an incoming one is refused.
    #[error("a message of {bytes} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The announcement of a multi-frame message is invalid, or its parts do not match it.
    #[error("an unreadable announcement of a large message")]
    Unreadable,
    /// The peer is alive but accepted nothing for [`BULK_STALL_LIMIT`](super::limits::BULK_STALL_LIMIT).
    #[error("the peer accepts no data")]
    Stalled,
}

/// Reasons for which a client has no connection. Nothing is left open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The node did not respond in time.
    #[error("no answer from {0}")]
    Timeout(SocketAddr),
    /// The socket could not be created, or the address is unusable.
    #[error("cannot reach {addr}: {reason}")]
    Unreachable {
        /// The node's address.
        addr: SocketAddr,
        /// The reason.
        reason: String,
    },
    /// The node refused the connection: the certificate or the cluster is wrong, or there are too many
    /// connections.
    #[error("{addr} refuses the connection: {reason}")]
    Refused {
        /// The node's address.
        addr: SocketAddr,
        /// The node's reason.
        reason: String,
    },
    /// The certificate, its key or an authority is unusable.
    #[error("unusable credentials: {0}")]
    Identity(String),
}
