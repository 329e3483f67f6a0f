//! How a request ends: stable codes, and what happened to the state (DESIGN.md D12).

use serde::{Deserialize, Serialize};

/// Longest arguments of one command, in bytes of CBOR: with the key and the names they fit one frame of a
/// request lane.
pub const MAX_ARGS_BYTES: usize = (8 << 20) - (128 << 10);

/// Longest reply of one command, in bytes of CBOR: it fits one frame too, and a value that came as an
/// argument can come back.
pub const MAX_REPLY_BYTES: usize = MAX_ARGS_BYTES + (64 << 10);

/// Why a request failed. Stable: programs rely on the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// No holder of the key's partition can be reached.
    NotEnoughReplicas,
    /// The deadline came first.
    DeadlineExceeded,
    /// A mailbox or a queue is full: try again later, or slower.
    Overloaded,
    /// The node asked does not hold the partition (any more). Coordinators retry by themselves.
    StaleRing,
    /// No module of that name is deployed.
    UnknownModule,
    /// The module has no such command.
    UnknownCommand,
    /// The arguments do not fit the command's description.
    BadArguments,
    /// The module's own no.
    Refused,
    /// The guest trapped.
    Trapped,
    /// The guest trapped or ran out of time, and items that it kept in memory are gone with it: those that
    /// were acknowledged before, not only what this request wrote.
    ItemsLost,
    /// The vnode's memory is nearly used up: writes are refused before they would end the guest.
    PartitionFull,
    /// The guest broke a rule of the contract; its call was undone.
    ContractBroken,
    /// A key, a value, a batch or a reply is over its limit.
    ValueTooLarge,
    /// The node cannot run the module now (it does not have, or cannot start, its component).
    NotReady,
    /// The module refuses this command while it hands off.
    HandoffInProgress,
    /// The control plane has no majority, or none in time.
    NoQuorum,
    /// The node stops.
    ShuttingDown,
    /// A fault of the host; its log says more.
    Internal,
}

/// What a failed request left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppliedState {
    /// Nothing was changed; sending it again is safe.
    NotApplied,
    /// It was done, though the answer is an error.
    Applied,
    /// Nobody knows: look before sending it again.
    Unknown,
}

/// The module's own no, as the guest gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRefusal {
    /// Documented by the module.
    pub code: String,
    /// For people.
    pub message: String,
    /// CBOR for programs.
    #[serde(with = "serde_bytes")]
    pub detail: Option<Vec<u8>>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// Stable.
    pub code: ErrorCode,
    /// For people: what happened and what to do.
    pub message: String,
    /// What was left behind.
    pub state: AppliedState,
    /// With [`ErrorCode::Refused`].
    pub refusal: Option<GuestRefusal>,
    /// With [`ErrorCode::StaleRing`]: the version of the partition that the answerer knows.
    pub version: u64,
}

impl RequestError {
    /// An error that changed nothing.
    pub fn not_applied(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), state: AppliedState::NotApplied, refusal: None, version: 0 }
    }

    /// An error that may have changed something.
    pub fn unknown(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { state: AppliedState::Unknown, ..Self::not_applied(code, message) }
    }

    /// The answerer does not hold the partition, by what it knows at `version`.
    pub fn stale_ring(version: u64) -> Self {
        let message = "the partition is held elsewhere";
        Self { version, ..Self::not_applied(ErrorCode::StaleRing, message) }
    }
}
