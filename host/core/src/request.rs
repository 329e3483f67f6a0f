//! Requests: a command with its arguments, and the error of one that failed (DESIGN.md D12).

use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The maximum length of the arguments of one command, in bytes of CBOR: with the key and the names they fit
/// one frame of a request lane.
pub const MAX_ARGS_BYTES: usize = (8 << 20) - (128 << 10);

/// The maximum length of the reply of one command, in bytes of CBOR: it fits one frame too, and a value that
/// was accepted as an argument can be returned.
pub const MAX_REPLY_BYTES: usize = MAX_ARGS_BYTES + (64 << 10);

/// A command for a guest. The bytes are shared with the frame or the client request that they arrived in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The command's name.
    pub command: String,
    /// The routing key, for a command that is routed by one.
    pub key: Option<Bytes>,
    /// CBOR map of the arguments.
    pub args: Bytes,
}

/// A number of replicas that a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    /// A majority of the module's replicas.
    Quorum,
    /// Every replica of the module.
    All,
    /// As many as this.
    Number(u8),
}

impl Count {
    /// Return the number of replicas that this is of `n`.
    pub fn of(self, n: usize) -> usize {
        match self {
            Self::Quorum => n / 2 + 1,
            Self::All => n,
            Self::Number(number) => usize::from(number),
        }
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "one" => Ok(Self::Number(1)),
            "quorum" => Ok(Self::Quorum),
            "all" => Ok(Self::All),
            _ => match word.parse() {
                Ok(number) if number > 0 => Ok(Self::Number(number)),
                _ => Err("`one`, `quorum`, `all` or a number of replicas from 1".to_owned()),
            },
        }
    }
}

/// What the caller of one command asks of the replicas, instead of what the module's settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demands {
    /// Number of replicas that agree on what the command reads.
    pub r: Option<Count>,
    /// Number of nodes that have a write before it is acknowledged.
    pub w: Option<Count>,
    /// Only replicas may acknowledge the write, no fallbacks. False leaves it to the module: a node relies on a strict
    /// module having no hints.
    pub strict: bool,
}

impl Demands {
    /// Check the demands against the module's number of replicas.
    ///
    /// # Errors
    /// The reason, with the demand and the possible values.
    pub fn check(&self, n: usize) -> Result<(), String> {
        for (name, count) in [("r", self.r), ("w", self.w)] {
            if let Some(count) = count.filter(|count| !(1..=n).contains(&count.of(n))) {
                let wanted = count.of(n);
                return Err(format!(
                    "{name} is from 1 to the module's number of replicas, which is {n}, not {wanted}"
                ));
            }
        }
        Ok(())
    }
}

/// The reason of a failure. The names are stable: programs rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The owner of the key's partition cannot be reached.
    NotEnoughReplicas,
    /// The deadline passed.
    DeadlineExceeded,
    /// A mailbox or a queue is full: try again later, or slower.
    Overloaded,
    /// The node does not, or no longer, own the partition. Coordinators retry automatically.
    StaleRing,
    /// No module of that name is deployed.
    UnknownModule,
    /// The module has no such command.
    UnknownCommand,
    /// The arguments do not fit the command's description.
    BadArguments,
    /// The module refused the command.
    Refused,
    /// The guest trapped.
    Trapped,
    /// The guest trapped or ran out of time, and the items in its memory are lost: also those that were
    /// acknowledged before this request.
    ItemsLost,
    /// The vnode's memory is nearly full: writes are refused before one of them traps the guest.
    PartitionFull,
    /// The guest broke a rule of the contract; its call was undone.
    ContractBroken,
    /// The disk of the node is nearly full: commands that write are refused, unless they free space.
    StorageFull,
    /// The node's database of items is damaged and serves nothing until the node starts again.
    StorageDamaged,
    /// A key, a value, a batch or a reply is over its limit.
    ValueTooLarge,
    /// The node cannot run the module now: its component is missing or does not start.
    NotReady,
    /// The module refuses this command during a handoff.
    HandoffInProgress,
    /// The control plane has no majority, or did not reach it in time.
    NoQuorum,
    /// The node is shutting down.
    ShuttingDown,
    /// A fault of the host; its log has the details.
    Internal,
}

/// The effect of a failed request on the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppliedState {
    /// Nothing was changed; a retry is safe.
    NotApplied,
    /// The command was applied although the answer is an error.
    Applied,
    /// Unknown: the caller must check before it retries.
    Unknown,
}

/// The refusal of a command by the module itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRefusal {
    /// Code that the module documents.
    pub code: String,
    /// Description for people.
    pub message: String,
    /// CBOR for programs.
    #[serde(with = "serde_bytes")]
    pub detail: Option<Vec<u8>>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// The reason.
    pub code: ErrorCode,
    /// Description for people, with the remedy if there is one.
    pub message: String,
    /// The effect on the state.
    pub state: AppliedState,
    /// Set with [`ErrorCode::Refused`].
    pub refusal: Option<GuestRefusal>,
    /// Set with [`ErrorCode::StaleRing`]: the version of the partition at the node that answered.
    pub version: u64,
}

impl RequestError {
    /// Create an error of a request that changed nothing.
    pub fn not_applied(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), state: AppliedState::NotApplied, refusal: None, version: 0 }
    }

    /// Create an error of a request that may have been applied.
    pub fn unknown(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { state: AppliedState::Unknown, ..Self::not_applied(code, message) }
    }

    /// Create the error of a node that does not own the partition at `version`.
    pub fn stale_ring(version: u64) -> Self {
        let message = "another node owns the partition";
        Self { version, ..Self::not_applied(ErrorCode::StaleRing, message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_asks_for_replicas_by_word_or_number() {
        let of_five = |word: &str| word.parse().map(|count: Count| count.of(5));
        assert_eq!((of_five("one"), of_five("quorum"), of_five("all")), (Ok(1), Ok(3), Ok(5)));
        assert_eq!(of_five("4"), Ok(4));
        for word in ["", "0", "-1", "256", "most"] {
            assert!(of_five(word).is_err(), "{word}");
        }
    }

    #[test]
    fn demands_above_the_number_of_replicas_are_refused_with_the_limits() {
        let demands = |r, w| Demands { r, w, strict: false }.check(3);
        assert_eq!(demands(Some(Count::All), Some(Count::Number(3))), Ok(()));
        let error = demands(None, Some(Count::Number(4)));
        assert!(error.is_err_and(|error| error.contains("w is from 1") && error.contains("is 3, not 4")));
        assert!(demands(Some(Count::Number(0)), None).is_err());
    }
}
