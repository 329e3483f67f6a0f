//! Output of the verbs, on which scripts rely. Fields may be added, but none may be renamed.

use std::collections::BTreeMap;

use annulus_core::version::Speaks;
use serde::{Deserialize, Serialize};

/// One node of `members`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberRow {
    /// `name@host`.
    pub node: String,
    /// `joining`, `member`, `leaving`, `down` or `removed`.
    pub status: String,
    /// True if the node is up, as far as the addressed node knows.
    pub alive: bool,
    /// Time since `alive` last changed, in milliseconds, as the addressed node has observed it. Absent for
    /// that node itself.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// The transport's reason that the addressed node cannot reach this one. Absent if it can, or has not
    /// tried.
    #[serde(default)]
    pub unreachable: Option<String>,
    /// Failure domain.
    pub zone: Option<String>,
    /// Share of the ring, relative to other nodes.
    pub weight: u32,
    /// Number of partitions of which the node is the owner.
    pub owned: usize,
    /// Number of partitions of which the node holds a replica.
    pub replicas: usize,
    /// True if the node currently is the claimant, which decides ownership changes.
    pub claimant: bool,
    /// QUIC address.
    pub listen: String,
    /// HTTP address; reserved.
    pub http: String,
    /// Change that is staged for the node: `join`, `leave`, `replace` or `remove`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<String>,
    /// Versions that the node has reported to the addressed node; none if it has not reported any.
    #[serde(default)]
    pub speaks: Option<Speaks>,
}

/// Output of `ring`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingRow {
    /// Number of partitions.
    pub ring_size: u16,
    /// Log index of the last change.
    pub epoch: u64,
    /// Partitions, ordered by id.
    pub partitions: Vec<PartitionRow>,
}

/// One partition of `ring`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionRow {
    /// Id, `0..ring_size`.
    pub id: u16,
    /// Names of the replicas, in order. The first one is the owner.
    pub replicas: Vec<String>,
    /// The replica set to come; empty if no transfer is pending.
    pub pending: Vec<String>,
}

/// One transfer of `transfers`, for one module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferRow {
    /// Name of the module; empty if no module is deployed.
    pub module: String,
    /// Id of the partition.
    pub partition: u16,
    /// `ownership`, `hinted`, `repair` or `swap`.
    pub kind: String,
    /// Name of the sending node.
    pub from: String,
    /// Name of the receiving node.
    pub to: String,
    /// `waiting`, `running`, `sealed`, `done` or `failed`.
    pub state: String,
    /// Number of items sent so far. An item that is written again during the transfer counts again.
    pub items_done: u64,
    /// Approximate number of items in total, if known.
    pub items_total: Option<u64>,
    /// Size of the items sent so far, in bytes.
    pub bytes: u64,
    /// The last failure.
    pub error: Option<String>,
    /// The condition that the transfer waits for, if it is not running.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// Time until the next attempt, in milliseconds.
    #[serde(default)]
    pub retry_in_ms: Option<u64>,
    /// Items sent per second, over the last few seconds.
    #[serde(default)]
    pub items_per_s: u64,
    /// Bytes of items sent per second, over the last few seconds.
    #[serde(default)]
    pub bytes_per_s: u64,
    /// Time at which the sender learned of the transfer, in milliseconds since 1970; 0 if the sender cannot
    /// be asked.
    #[serde(default)]
    pub since_ms: u64,
    /// Time of the last change of `state`, in milliseconds since 1970; 0 if the sender cannot be asked.
    #[serde(default)]
    pub state_since_ms: u64,
    /// Number of streams opened so far.
    #[serde(default)]
    pub tries: u32,
}

impl From<annulus_handoff::TransferRow> for TransferRow {
    fn from(row: annulus_handoff::TransferRow) -> Self {
        // Destructure every field, so that a field added there does not compile until it is handled here.
        let annulus_handoff::TransferRow {
            module,
            partition,
            kind,
            from,
            to,
            state,
            items_done,
            items_total,
            bytes,
            error,
            waiting_for,
            retry_in_ms,
            items_per_s,
            bytes_per_s,
            since_ms,
            state_since_ms,
            tries,
        } = row;
        Self {
            module,
            partition: partition.0,
            kind: kind.to_string(),
            from,
            to,
            state: state.to_string(),
            items_done,
            items_total,
            bytes,
            error,
            waiting_for,
            retry_in_ms,
            items_per_s,
            bytes_per_s,
            since_ms,
            state_since_ms,
            tries,
        }
    }
}

/// Output of `transfers limit`: the limits on transfers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitsRow {
    /// Limits of the nodes without separate settings.
    pub cluster: LimitRow,
    /// Effective limits of each node.
    pub nodes: Vec<LimitRow>,
}

/// Limits of one node or of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitRow {
    /// Name of the node; none for the cluster.
    pub node: Option<String>,
    /// Number of transfers sent at once.
    pub outgoing: u16,
    /// Number of transfers received at once.
    pub incoming: u16,
    /// Bytes of items sent per second; none if unlimited.
    pub bytes_per_second: Option<u64>,
    /// True if all transfers are paused, except those that are sealed.
    pub paused: bool,
    /// Names of the limits set at this level. The others come from the cluster's settings or are defaults.
    pub set: Vec<String>,
}

/// One module of `modules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRow {
    /// Name of the module.
    pub name: String,
    /// Version of the current release, counted from 1.
    pub version: u64,
    /// The guest's own version string.
    pub guest_version: String,
    /// SHA-256 of the component.
    pub digest: String,
    /// Number of replicas.
    pub n: u8,
    /// Read quorum.
    pub r: u8,
    /// Write quorum.
    pub w: u8,
    /// True if only replicas acknowledge a write, and no fallbacks.
    #[serde(default)]
    pub strict: bool,
    /// `memory` or `durable`.
    pub storage: String,
    /// Digest of the component that each node runs, by node name.
    pub nodes: BTreeMap<String, String>,
    /// Version that each node runs, by node name: two versions may have the same component.
    #[serde(default)]
    pub versions: BTreeMap<String, u64>,
    /// Nodes that cannot run the module, with the reason. Its preference lists treat them as down.
    #[serde(default)]
    pub unable: BTreeMap<String, String>,
    /// Longest time of one call of the guest, in milliseconds.
    #[serde(default)]
    pub call_ms: Option<u64>,
    /// Settings, in the form that `--set` takes.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Earlier releases that `rollback --to` can go back to, newest first.
    #[serde(default)]
    pub earlier: Vec<ReleaseRow>,
}

/// An earlier release of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseRow {
    /// Version of the release.
    pub version: u64,
    /// The guest's own version string; empty if this build cannot read the release's description.
    pub guest_version: String,
    /// SHA-256 of the component.
    pub digest: String,
    /// Longest time of one call of the guest, in milliseconds.
    #[serde(default)]
    pub call_ms: Option<u64>,
    /// Settings that a rollback restores; none if they were not stored (before state level 3).
    pub settings: Option<BTreeMap<String, String>>,
}

/// Result of `deploy` and `rollback`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployedRow {
    /// Name of the module.
    pub name: String,
    /// Version that runs now.
    pub version: u64,
    /// SHA-256 of its component.
    pub digest: String,
    /// Number of nodes that run it.
    pub nodes: usize,
    /// Number of items that the swap carried over, over all nodes.
    pub swapped_items: u64,
    /// Longest pause of any vnode during the swap, in microseconds.
    pub longest_stall_us: u64,
    /// Partitions whose old guest ended during the swap, so that the items that it kept in memory are lost.
    #[serde(default)]
    pub lost: Vec<u16>,
    /// Names of the members that could not be reached. They swap once they are back.
    pub unreached: Vec<String>,
    /// True if the module already had this component and these settings, so that no new version was made.
    #[serde(default)]
    pub unchanged: bool,
}

/// Output of `token`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenRow {
    /// The token, for `join`.
    pub token: String,
    /// Time at which it expires, in milliseconds since 1970.
    pub expires_ms: u64,
    /// Address to join: that of the addressed node.
    pub address: String,
    /// Number of nodes that it admits; `None` is any number, in a cluster with members of older builds.
    #[serde(default)]
    pub uses: Option<u32>,
}

/// Output of `locate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocateRow {
    /// SHA-1 of the canonical key, in hex.
    pub hash: String,
    /// Id of the partition.
    pub partition: u16,
    /// The partition's 160-bit index, in decimal.
    pub index: String,
    /// Preference list of the key; empty if no node was asked.
    pub preference_list: Vec<PreferenceRow>,
}

/// One node of a preference list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreferenceRow {
    /// Name of the node.
    pub node: String,
    /// `primary` or `fallback`.
    pub role: String,
}

/// A node's stores of modules with several replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicasRow {
    /// Number of all of them.
    pub stores: usize,
    /// Number of those that are built from others, because they have lost their items.
    pub building: usize,
    /// Number of those that are compared with others, because they may have missed writes.
    pub behind: usize,
    /// Number of partitions of which this node keeps items for replicas that could not be reached.
    #[serde(default)]
    pub hints: usize,
}

/// Output of `status`: one node's view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusRow {
    /// Name of the addressed node.
    pub node: String,
    /// Id of the cluster.
    pub cluster: String,
    /// Version of the program.
    pub version: String,
    /// QUIC address.
    pub listen: String,
    /// HTTP address; reserved.
    pub http: String,
    /// Name of the claimant, if one is known.
    pub claimant: Option<String>,
    /// True if changes can be committed, as far as this node knows.
    pub quorum: bool,
    /// Index of the last control entry that this node has applied.
    pub applied: u64,
    /// Number of members that are not removed.
    pub members: usize,
    /// Number of those members that are up.
    pub alive: usize,
    /// Number of partitions whose replica set is changing.
    pub pending: usize,
    /// Number of transfers that are pending in the cluster, one for each partition and module.
    pub transfers: usize,
    /// Number of deployed modules.
    pub modules: usize,
    /// Number of vnodes that run on this node.
    pub vnodes: usize,
    /// Number of vnodes set aside: they serve nothing, and keep items that this node no longer owns since a
    /// recovery, for as long as the node runs.
    #[serde(default)]
    pub aside: usize,
    /// The node's stores of modules with several replicas.
    #[serde(default)]
    pub replicas: ReplicasRow,
    /// Messages about conditions that need an operator's attention.
    pub alerts: Vec<String>,
    /// Partitions whose items may be lost because a node was removed, was restarted, or was away at a
    /// recovery. Shown until `status --acknowledge`.
    #[serde(default)]
    pub possible_loss: Vec<super::plan_rows::LossRow>,
    /// Number of this node's newest incident among the alerts; 0 if there is none.
    #[serde(default)]
    pub newest_incident: u64,
    /// Level of the cluster's state, which every member supports. It determines the commands and formats in
    /// use.
    #[serde(default)]
    pub level: u32,
    /// Versions and levels that this node supports.
    #[serde(default)]
    pub speaks: Speaks,
    /// Names of the members that keep the level below the newest one of this node.
    #[serde(default)]
    pub held_back_by: Vec<String>,
}

/// Result of a coverage call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageRow {
    /// True if every partition answered.
    pub complete: bool,
    /// Ids of the partitions that did not answer.
    pub missing: Vec<u16>,
    /// Those of `missing` whose guest ended during the command, so that the items that it kept are lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<u16>,
    /// Those of `missing` in which a command that writes may have taken effect. It had no effect in the
    /// others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsure: Vec<u16>,
}

/// Result of a load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// The load itself.
    #[serde(flatten)]
    pub load: Measured,
    /// The same loop against the transport of another node, without a vnode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane_echo: Option<Measured>,
    /// One vnode of native code, in the same actor as a wasm guest, without routing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<Measured>,
    /// One vnode of the module, without routing like `native`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasm: Option<Measured>,
}

/// Figures of one closed loop. The latencies are those of successful requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Number of successful requests.
    pub ops: u64,
    /// Number of failed requests.
    pub errors: u64,
    /// Duration in seconds.
    pub seconds: f64,
    /// `ops / seconds`.
    pub ops_per_s: f64,
    /// Median latency in microseconds.
    pub p50_us: u64,
    /// 99th percentile of the latency, in microseconds.
    pub p99_us: u64,
    /// 99.9th percentile of the latency, in microseconds.
    pub p999_us: u64,
    /// Longest latency in microseconds.
    pub max_us: u64,
    /// Number of errors by error code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub error_codes: BTreeMap<String, u64>,
}
