//! The frames of the admin protocol, in CBOR.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use annulus_core::ids::RequestId;
use annulus_core::request::{Demands, MAX_ARGS_BYTES};
use annulus_core::state::{HandoffChange, StorageKind};

/// Header of an admin stream; contains the version of this protocol.
pub const ADMIN_HEADER: &[u8] = &[1];
/// Longest frame of an uploaded component, in bytes.
pub const UPLOAD_CHUNK_BYTES: usize = 256 * 1024;

/// Request of a command-line verb. It is the first frame of the verb's stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminRequest {
    /// List all members. `Done` carries [`MemberRow`](super::rows::MemberRow)s.
    Members,
    /// Show the ring. `Done` carries a [`RingRow`](super::rows::RingRow).
    Ring,
    /// List the transfers. `Done` carries [`TransferRow`](super::rows::TransferRow)s.
    Transfers,
    /// Show the addressed node and its view of the cluster. `Done` carries a
    /// [`StatusRow`](super::rows::StatusRow).
    Status,
    /// Issue a join token. `Done` carries a [`TokenRow`](super::rows::TokenRow).
    Token {
        /// Validity of the token, in milliseconds.
        ttl_ms: u64,
        /// Number of nodes that it admits; `None` is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uses: Option<u32>,
    },
    /// Make the addressed node join another cluster: `Progress`, then an empty `Done` once the node has been
    /// admitted. The node then restarts in place, as a member of that cluster.
    Join {
        /// `--listen` address of a member of the cluster to join.
        address: String,
        /// Token that `annulus token` printed on a member of that cluster.
        token: String,
        /// Discard the modules and items of the node's own single-node cluster.
        discard: bool,
        /// Own no partitions in that cluster until a plan that includes this node is committed.
        #[serde(default)]
        stage: bool,
        /// Longest wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Have a member hand off its partitions and leave: `Progress`, then `Done` with a
    /// [`MemberRow`](super::rows::MemberRow) or, if staged, a [`StagedRow`](super::plan_rows::StagedRow).
    Leave {
        /// Name of the member; if absent, the addressed node.
        node: Option<String>,
        /// Stage the change for the next commit.
        #[serde(default)]
        stage: bool,
        /// Wait until the handoffs are complete; otherwise reply as soon as the member is marked as leaving.
        wait: bool,
        /// Longest wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Locate a key. `Done` carries a [`LocateRow`](super::rows::LocateRow).
    Locate {
        /// Name of the module, which is the bucket of the key.
        module: String,
        /// Bytes of the key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
        /// Length of the preference list.
        n: u8,
    },
    /// List the deployed modules. `Done` carries [`ModuleRow`](super::rows::ModuleRow)s.
    Modules,
    /// Return a module's description. `Done` carries a [`Description`](annulus_core::description::Description).
    Describe {
        /// Name of the module.
        module: String,
    },
    /// Deploy a release of a new or an existing module. The component follows in frames of at most
    /// [`UPLOAD_CHUNK_BYTES`]: `Progress`, then `Done` with a [`DeployedRow`](super::rows::DeployedRow).
    Deploy(DeployRequest),
    /// Roll a module back to an earlier release: `Progress`, then `Done` with a
    /// [`DeployedRow`](super::rows::DeployedRow).
    Rollback {
        /// Name of the module.
        module: String,
        /// Version of the release; if absent, the previous one.
        #[serde(default)]
        to: Option<u64>,
        /// Longest wait until every member runs the release, in milliseconds; if absent, the node's default limit.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// Undeploy a module and delete its items. `Done` is empty.
    Undeploy {
        /// Name of the module.
        module: String,
    },
    /// Run a command on one partition. `Done` carries the guest's own CBOR.
    Call(CallRequest),
    /// Run a command on every partition: `Batch`es, then `Done` with a
    /// [`CoverageRow`](super::rows::CoverageRow).
    Coverage(CallRequest),
    /// As `Call`, with quorums of its own. A request apart, so that a node that does not know them refuses it.
    CallWith(CallRequest, Demands),
    /// As `Coverage`, with quorums of its own.
    CoverageWith(CallRequest, Demands),
    /// Generate load inside the addressed node: `Progress`, then `Done` with a
    /// [`BenchRow`](super::rows::BenchRow).
    Bench(BenchRequest),
    /// Recover from the loss of a majority. `Done` carries a [`RecoverRow`](super::recover::RecoverRow).
    Recover {
        /// The survey result to recover from, as it was shown to the operator. If absent, only report what a recovery
        /// would do.
        basis: Option<super::recover::Basis>,
    },
    /// Show the limits on transfers. `Done` carries a [`LimitsRow`](super::rows::LimitsRow).
    TransferLimits,
    /// Change the limits on transfers. `Done` carries the new [`LimitsRow`](super::rows::LimitsRow).
    SetTransfers {
        /// Name of the node whose limits change; if absent, those of the cluster.
        node: Option<String>,
        /// The changes.
        changes: Vec<HandoffChange>,
    },
    /// Replace a member with a node that holds no partitions yet: `Progress`, then `Done` with a
    /// [`CommittedRow`](super::plan_rows::CommittedRow) or, if staged, a
    /// [`StagedRow`](super::plan_rows::StagedRow).
    Replace {
        /// Name of the member to replace.
        old: String,
        /// Name of the node that takes its place.
        new: String,
        /// Stage the change for the next commit.
        stage: bool,
        /// Wait until all partitions have moved.
        wait: bool,
        /// Longest wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Remove a node that is permanently lost. The replies are those of `Replace`.
    Remove {
        /// Name of the node.
        node: String,
        /// Stage the change for the next commit.
        stage: bool,
        /// Wait until all partitions have moved.
        wait: bool,
        /// Longest wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Mark a node as down. `Done` carries its [`MemberRow`](super::rows::MemberRow).
    Down {
        /// Name of the node.
        node: String,
    },
    /// Compute the effect of the staged changes, or of one change. `Done` carries a
    /// [`PlanRow`](super::plan_rows::PlanRow).
    Plan {
        /// True if the plan is shown to an operator. The node then remembers its id, and reports that id with the
        /// next plan. Has no effect if `of` is set.
        shown: bool,
        /// Plan only this change, instead of the staged ones.
        of: Option<PlanOf>,
    },
    /// Commit the staged changes: `Progress`, then `Done` with a
    /// [`CommittedRow`](super::plan_rows::CommittedRow).
    Commit {
        /// Id of the plan to commit; if absent, the current plan is committed, whatever it contains.
        plan: Option<String>,
        /// Wait until all partitions have moved.
        wait: bool,
        /// Longest wait, in milliseconds.
        timeout_ms: u64,
    },
    /// Discard the staged changes. `Done` carries them as a [`StagedRow`](super::plan_rows::StagedRow).
    ClearStaged,
    /// Acknowledge possible losses, so that `status` no longer shows them. `Done` is empty.
    Acknowledge {
        /// Acknowledge losses up to this log index; 0 for none.
        up_to: u64,
        /// Acknowledge incidents of the addressed node up to this number; 0 for none.
        #[serde(default)]
        incidents: u64,
    },
}

/// A single change to plan without staging it. Nodes are given by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanOf {
    /// `remove NODE`.
    Remove(String),
    /// `replace OLD NEW`.
    Replace(String, String),
}

/// Longest request, in bytes: the longest arguments of a command, plus room for the rest of the frame.
pub const MAX_REQUEST_BYTES: usize = MAX_ARGS_BYTES + (64 << 10);

/// Longest frame of a reply, in bytes; several times the size of the largest table that a cluster can produce.
pub const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Request to deploy a release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployRequest {
    /// Name of the module; if absent, the name from `describe`.
    pub name: Option<String>,
    /// Number of replicas.
    pub n: Option<u8>,
    /// Read quorum.
    pub r: Option<u8>,
    /// Write quorum.
    pub w: Option<u8>,
    /// True if only replicas may acknowledge a write, and no fallbacks for those that cannot be reached; if absent, the
    /// module keeps its setting.
    #[serde(default)]
    pub strict: Option<bool>,
    /// Engine of host storage.
    pub storage: Option<StorageKind>,
    /// Settings to change, as pairs of name and text. The node converts each text to the type that the component
    /// declares. Settings that are not listed keep their values.
    pub config: Vec<(String, String)>,
    /// Names of settings to remove from the module.
    #[serde(default)]
    pub unset: Vec<String>,
    /// Time limit of one call to the guest, in milliseconds; if absent, the module keeps its current limit.
    #[serde(default)]
    pub call_ms: Option<u64>,
    /// Length of the component that follows, in bytes.
    pub bytes: u64,
    /// Longest wait, in milliseconds.
    pub timeout_ms: u64,
}

/// Request to run one command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRequest {
    /// Name of the module.
    pub module: String,
    /// Name of the command.
    pub command: String,
    /// CBOR map from parameter names to values.
    #[serde(with = "serde_bytes")]
    pub args: Vec<u8>,
    /// Routing key; if present, it must equal the key in `args`.
    pub key: Option<serde_bytes::ByteBuf>,
    /// Time left for the request, in milliseconds.
    pub timeout_ms: u64,
    /// Id of the request. A retry has the same id (R10).
    pub id: RequestId,
}

/// Selects the keys of a load by their owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BenchTarget {
    /// Keys that the addressed node owns.
    Local,
    /// Keys that another node owns.
    Remote,
    /// Any keys.
    #[default]
    Any,
}

/// Request to generate load with closed loops of commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRequest {
    /// Name of the module.
    pub module: String,
    /// Names of the commands, each with its share of the load.
    pub mix: Vec<(String, u32)>,
    /// Number of concurrent requests.
    pub concurrency: u32,
    /// Duration in milliseconds.
    pub duration_ms: u64,
    /// Owner of the keys.
    pub target: BenchTarget,
    /// Number of different keys.
    pub keys: u32,
    /// Length of a value, in bytes.
    pub value_bytes: u32,
    /// Also measure the baselines: an echo over a lane, a native vnode, and a vnode of the module that is called
    /// without routing.
    pub baseline: bool,
}

/// One frame of a reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminReply {
    /// The request is in progress.
    Progress {
        /// Current activity, such as `uploading`, `compiling` or `moving partitions`.
        what: String,
        /// Units done.
        done: u64,
        /// Units in total; 0 if unknown.
        total: u64,
    },
    /// Values that a coverage command returned from one partition.
    Batch {
        /// Id of the partition.
        partition: u16,
        /// Name of the node that answered for it.
        node: String,
        /// Values, each in CBOR.
        values: Vec<serde_bytes::ByteBuf>,
    },
    /// End of the reply: the result, as CBOR of the type that is documented at the request.
    Done(#[serde(with = "serde_bytes")] Vec<u8>),
    /// End of the reply: the request failed.
    Error(AdminError),
}

/// Failure of a request. `code` and `state` are stable, so that programs can match on them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// Error code in kebab-case, such as `not-enough-replicas`.
    pub code: String,
    /// Message for people. It names the next step if that is known.
    pub message: String,
    /// State of the request: `not-applied`, `applied` or `unknown`.
    pub state: String,
    /// The guest's refusal; present if `code` is `refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Box<RefusalDetail>>,
}

/// A guest's refusal of a command, in the guest's own words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusalDetail {
    /// Code of the refusal, defined by the module.
    pub code: String,
    /// Message of the module.
    pub message: String,
    /// Details for programs, in CBOR.
    pub detail: Option<serde_bytes::ByteBuf>,
}

impl AdminError {
    /// Create the error of a request that changed nothing.
    pub fn not_applied(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), state: "not-applied".into(), refusal: None }
    }

    /// Create the error of a request that may or may not have been applied.
    pub fn unknown(code: &str, message: impl Into<String>) -> Self {
        Self { state: "unknown".into(), ..Self::not_applied(code, message) }
    }
}

/// The error of a frame that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {what} of the admin protocol: {reason}")]
pub struct Malformed {
    /// Name of the expected type.
    pub what: &'static str,
    /// Message of the decoder.
    pub reason: String,
}

/// Encode a frame, or a value in one, as CBOR.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut out = Vec::new();
    // Writing to a `Vec` cannot fail, and neither does the serialisation of these types. If one did fail, the
    // peer would reject the empty frame and report the reason.
    if ciborium::into_writer(value, &mut out).is_err() {
        out.clear();
    }
    out.into()
}

/// Decode a frame, or a value in one.
///
/// # Errors
/// If the bytes are not the CBOR encoding of exactly one `T`.
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
