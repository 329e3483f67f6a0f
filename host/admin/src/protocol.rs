//! The frames of the admin protocol, as CBOR.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use annulus_core::ids::RequestId;
use annulus_core::request::MAX_ARGS_BYTES;
use annulus_core::state::{HandoffChange, StorageKind};

/// Header of an admin stream: the version of this protocol.
pub const ADMIN_HEADER: &[u8] = &[1];
/// How much of a component goes into one frame of an upload.
pub const UPLOAD_CHUNK_BYTES: usize = 256 * 1024;

/// What a verb asks of a node: the first frame of its stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminRequest {
    /// Every member: `Done` with [`MemberRow`](super::rows::MemberRow)s.
    Members,
    /// The ring: `Done` with a [`RingRow`](super::rows::RingRow).
    Ring,
    /// What moves: `Done` with [`TransferRow`](super::rows::TransferRow)s.
    Transfers,
    /// This node and what it thinks of the cluster: [`StatusRow`](super::rows::StatusRow).
    Status,
    /// Makes a join token: [`TokenRow`](super::rows::TokenRow).
    Token {
        /// How long it is good for, in milliseconds.
        ttl_ms: u64,
    },
    /// Makes the addressed node join another cluster: `Progress`, then `Done` when it is a
    /// member and holds its share.
    Join {
        /// `--listen` address of a member of that cluster.
        address: String,
        /// What `annulus token` printed there.
        token: String,
        /// Give up what the node's own cluster of one holds.
        discard: bool,
        /// Own nothing there until a plan takes it in.
        #[serde(default)]
        stage: bool,
        /// How long to wait for it, in milliseconds.
        timeout_ms: u64,
    },
    /// A member hands off what it holds and goes: `Progress`, then `Done` with a
    /// [`MemberRow`](super::rows::MemberRow), or, staged, a
    /// [`StagedRow`](super::plan_rows::StagedRow).
    Leave {
        /// Its name; the addressed node itself where none.
        node: Option<String>,
        /// Only with the next commit.
        #[serde(default)]
        stage: bool,
        /// Answer at once, without waiting for the handoffs.
        wait: bool,
        /// How long to wait for it, in milliseconds.
        timeout_ms: u64,
    },
    /// Where a key lives: [`LocateRow`](super::rows::LocateRow).
    Locate {
        /// Module, the bucket of the key.
        module: String,
        /// The key's bytes.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
        /// Length of the preference list.
        n: u8,
    },
    /// What is deployed: [`ModuleRow`](super::rows::ModuleRow)s.
    Modules,
    /// What a module says of itself: `wasm::Description`.
    Describe {
        /// Its name.
        module: String,
    },
    /// A first or further release; the component follows in frames of at most
    /// [`UPLOAD_CHUNK_BYTES`]. `Progress`, then `Done` with a
    /// [`DeployedRow`](super::rows::DeployedRow).
    Deploy(DeployRequest),
    /// Back to an earlier release: `Done` with a [`DeployedRow`](super::rows::DeployedRow).
    Rollback {
        /// The module's name.
        module: String,
        /// The release's version; the one before if none.
        #[serde(default)]
        to: Option<u64>,
        /// How long to wait until every member runs it, in milliseconds; the node's own limit if none.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// Ends a module and its items.
    Undeploy {
        /// The module's name.
        module: String,
    },
    /// One command to one partition: `Done` with the guest's own CBOR.
    Call(CallRequest),
    /// One command to every partition: `Batch`es, then `Done` with a
    /// [`CoverageRow`](super::rows::CoverageRow).
    Coverage(CallRequest),
    /// Load made inside the addressed node: `Progress`, then `Done` with a
    /// [`BenchRow`](super::rows::BenchRow).
    Bench(BenchRequest),
    /// Goes on without a majority that is lost: [`RecoverRow`](super::recover::RecoverRow).
    Recover {
        /// Do it, on this basis; where none, only say what it would mean.
        basis: Option<super::recover::Basis>,
    },
    /// How much may move at once: [`LimitsRow`](super::rows::LimitsRow).
    TransferLimits,
    /// Changes that: the new [`LimitsRow`](super::rows::LimitsRow).
    SetTransfers {
        /// Name of the node that it is about; the cluster where none.
        node: Option<String>,
        /// What.
        changes: Vec<HandoffChange>,
    },
    /// A node that holds nothing takes another's places: `Progress`, then `Done` with a
    /// [`CommittedRow`](super::plan_rows::CommittedRow), or, staged, a
    /// [`StagedRow`](super::plan_rows::StagedRow).
    Replace {
        /// Name of who goes.
        old: String,
        /// Name of who comes.
        new: String,
        /// Only with the next commit.
        stage: bool,
        /// Wait until all has moved.
        wait: bool,
        /// How long to wait for it, in milliseconds.
        timeout_ms: u64,
    },
    /// A node that is gone for good: as `Replace`.
    Remove {
        /// Its name.
        node: String,
        /// Only with the next commit.
        stage: bool,
        /// Wait until all has moved.
        wait: bool,
        /// How long to wait for it, in milliseconds.
        timeout_ms: u64,
    },
    /// Marks a node as down: `Done` with its [`MemberRow`](super::rows::MemberRow).
    Down {
        /// Its name.
        node: String,
    },
    /// What the staged changes, or one change, would do: [`PlanRow`](super::plan_rows::PlanRow).
    Plan {
        /// An operator sees it: a commit through this node is then of this plan.
        shown: bool,
        /// Of `remove` or `replace` at once, not of what is staged.
        of: Option<PlanOf>,
    },
    /// Carries out what is staged: `Progress`, then `Done` with a
    /// [`CommittedRow`](super::plan_rows::CommittedRow).
    Commit {
        /// Id of the plan; whichever there is where none.
        plan: Option<String>,
        /// Wait until all has moved.
        wait: bool,
        /// How long to wait for it, in milliseconds.
        timeout_ms: u64,
    },
    /// Forgets what is staged: `Done` with what that was, a
    /// [`StagedRow`](super::plan_rows::StagedRow).
    ClearStaged,
    /// The possible losses up to this log index have been seen.
    Acknowledge {
        /// Log index; 0 for none.
        up_to: u64,
        /// Incidents of the addressed node up to this number have been seen too.
        #[serde(default)]
        incidents: u64,
    },
}

/// One change by names, to be planned and not staged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanOf {
    /// `remove NODE`.
    Remove(String),
    /// `replace OLD NEW`.
    Replace(String, String),
}

/// Longest request, in bytes: the arguments of a command, and what is said about them.
pub const MAX_REQUEST_BYTES: usize = MAX_ARGS_BYTES + (64 << 10);

/// Longest message of an answer, in bytes: the largest table that a cluster can show, some times over.
pub const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A release to come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployRequest {
    /// Name of the module; what `describe` says where none.
    pub name: Option<String>,
    /// Replicas.
    pub n: Option<u8>,
    /// Read quorum.
    pub r: Option<u8>,
    /// Write quorum.
    pub w: Option<u8>,
    /// Engine of its host storage.
    pub storage: Option<StorageKind>,
    /// Settings by name, as text: the node knows their types from the component. Those that the module
    /// has and that are not named here stay.
    pub config: Vec<(String, String)>,
    /// Settings that the module is no longer to have.
    #[serde(default)]
    pub unset: Vec<String>,
    /// How long one call of the guest may take, in milliseconds; what the module has where none.
    #[serde(default)]
    pub call_ms: Option<u64>,
    /// Length of the component that follows.
    pub bytes: u64,
    /// How long to wait for it, in milliseconds.
    pub timeout_ms: u64,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRequest {
    /// Which module.
    pub module: String,
    /// Which of its commands.
    pub command: String,
    /// CBOR map from parameter to value.
    #[serde(with = "serde_bytes")]
    pub args: Vec<u8>,
    /// Routing key, to be checked against what the arguments say.
    pub key: Option<serde_bytes::ByteBuf>,
    /// Milliseconds that are left.
    pub timeout_ms: u64,
    /// The same when the same request is sent again (R10).
    pub id: RequestId,
}

/// Whose keys a load is aimed at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BenchTarget {
    /// Keys that the addressed node owns.
    Local,
    /// Keys that another node owns.
    Remote,
    /// Any key.
    #[default]
    Any,
}

/// A closed loop of commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRequest {
    /// Which module.
    pub module: String,
    /// Commands and their shares.
    pub mix: Vec<(String, u32)>,
    /// How many requests are under way at a time.
    pub concurrency: u32,
    /// How long, in milliseconds.
    pub duration_ms: u64,
    /// Whose keys.
    pub target: BenchTarget,
    /// How many different keys.
    pub keys: u32,
    /// Length of a value in bytes.
    pub value_bytes: u32,
    /// Also the lane's echo and the native vnode.
    pub baseline: bool,
}

/// One frame of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminReply {
    /// Still at it.
    Progress {
        /// What is being done: `uploading`, `compiling`, `moving partitions`.
        what: String,
        /// Units done.
        done: u64,
        /// Units in all, 0 where nobody knows.
        total: u64,
    },
    /// Values of one partition.
    Batch {
        /// Which partition.
        partition: u16,
        /// Name of the node that answered for it.
        node: String,
        /// CBOR, one each.
        values: Vec<serde_bytes::ByteBuf>,
    },
    /// The end: CBOR of what the request promises.
    Done(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The end: it failed.
    Error(AdminError),
}

/// Why a request failed. `code` and `state` are stable words for programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// Kebab-case: `not-enough-replicas`.
    pub code: String,
    /// For people; says what to do where that is known.
    pub message: String,
    /// `not-applied`, `applied` or `unknown`.
    pub state: String,
    /// A guest's own no, with `code` = `refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Box<RefusalDetail>>,
}

/// A guest's refusal, as it said it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusalDetail {
    /// The module's own code.
    pub code: String,
    /// The module's own words.
    pub message: String,
    /// CBOR for programs.
    pub detail: Option<serde_bytes::ByteBuf>,
}

impl AdminError {
    /// Nothing happened.
    pub fn not_applied(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), state: "not-applied".into(), refusal: None }
    }

    /// Nobody knows whether it happened.
    pub fn unknown(code: &str, message: impl Into<String>) -> Self {
        Self { state: "unknown".into(), ..Self::not_applied(code, message) }
    }
}

/// A frame that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {what} of the admin protocol: {reason}")]
pub struct Malformed {
    /// Which type was expected.
    pub what: &'static str,
    /// What the decoder said.
    pub reason: String,
}

/// CBOR of a frame or of a value in one.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut out = Vec::new();
    // Writing to a Vec cannot fail, and none of our types refuses to be serialised; an empty
    // frame is refused by the other side with a reason.
    if ciborium::into_writer(value, &mut out).is_err() {
        out.clear();
    }
    out.into()
}

/// Parses a frame or a value in one; nothing may follow it.
///
/// # Errors
/// When the bytes are not CBOR of exactly one `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let bad = |reason: String| Malformed { what: short_name::<T>(), reason };
    let mut rest = bytes;
    let value = ciborium::from_reader(&mut rest).map_err(|error| bad(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(bad(format!("{} bytes too many", rest.len()))) }
}

fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_survive_a_round_trip() {
        let request = AdminRequest::Call(CallRequest {
            module: "kv".into(),
            command: "get".into(),
            args: vec![0xa0],
            key: Some(serde_bytes::ByteBuf::from(vec![0, 255])),
            timeout_ms: 5000,
            id: RequestId([7; 16]),
        });
        assert_eq!(decode::<AdminRequest>(&encode(&request)).unwrap(), request);
        let reply = AdminReply::Done(vec![1, 2, 3]);
        assert_eq!(decode::<AdminReply>(&encode(&reply)).unwrap(), reply);
        let reply = AdminReply::Batch {
            partition: 63,
            node: "a@b".into(),
            values: vec![serde_bytes::ByteBuf::from(vec![0x61, 0x6b])],
        };
        assert_eq!(decode::<AdminReply>(&encode(&reply)).unwrap(), reply);
    }

    #[test]
    fn junk_and_trailing_bytes_are_refused_with_the_reason() {
        assert!(decode::<AdminRequest>(b"").is_err());
        assert!(decode::<AdminRequest>(&[0xff; 32]).is_err());
        let mut long = encode(&AdminRequest::Members).to_vec();
        long.push(0);
        let error = decode::<AdminRequest>(&long).unwrap_err().to_string();
        assert!(error.contains("AdminRequest") && error.contains("1 bytes too many"), "{error}");
    }
}
