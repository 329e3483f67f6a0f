//! What verbs show: the shapes that scripts rely on. Fields may be added, none renamed.

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
    /// Does it answer, as far as the addressed node knows?
    pub alive: bool,
    /// For how long it has, or has not, in milliseconds, since the addressed node looks; absent for
    /// that node itself.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// Why the addressed node cannot reach it, in the transport's words; absent where it can, or has not
    /// tried.
    #[serde(default)]
    pub unreachable: Option<String>,
    /// Failure domain.
    pub zone: Option<String>,
    /// Share of the ring relative to others.
    pub weight: u32,
    /// Partitions that it is the first replica of.
    pub owned: usize,
    /// Partitions of which it holds a replica.
    pub replicas: usize,
    /// Does it decide on ownership changes now?
    pub claimant: bool,
    /// Its QUIC address.
    pub listen: String,
    /// Its HTTP address, reserved.
    pub http: String,
    /// What is staged for it: `join`, `leave`, `replace` or `remove`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<String>,
    /// What it told the addressed node that it speaks; none if it has said nothing yet.
    #[serde(default)]
    pub speaks: Option<Speaks>,
}

/// `ring`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingRow {
    /// Number of partitions.
    pub ring_size: u16,
    /// Log index of the last change.
    pub epoch: u64,
    /// By id.
    pub partitions: Vec<PartitionRow>,
}

/// One partition of `ring`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionRow {
    /// `0..ring_size`.
    pub id: u16,
    /// Names, in order; the first owns it.
    pub replicas: Vec<String>,
    /// The replica set to come; empty where nothing moves.
    pub pending: Vec<String>,
}

/// One movement of `transfers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferRow {
    /// Which module's items.
    pub module: String,
    /// Which partition.
    pub partition: u16,
    /// `ownership`, `hinted`, `repair` or `swap`.
    pub kind: String,
    /// Node that gives.
    pub from: String,
    /// Node that takes.
    pub to: String,
    /// `waiting`, `running`, `sealed`, `done` or `failed`.
    pub state: String,
    /// Items that are over.
    pub items_done: u64,
    /// Items in all, roughly, if that is known.
    pub items_total: Option<u64>,
    /// Bytes that are over.
    pub bytes: u64,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// What it waits for, in words.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// When the next try is due.
    #[serde(default)]
    pub retry_in_ms: Option<u64>,
    /// Items sent in a second, over the last few.
    #[serde(default)]
    pub items_per_s: u64,
    /// Bytes of the same.
    #[serde(default)]
    pub bytes_per_s: u64,
    /// When its sender learned of it, in milliseconds since 1970; 0 where it cannot be asked.
    #[serde(default)]
    pub since_ms: u64,
    /// Since when its state is this one.
    #[serde(default)]
    pub state_since_ms: u64,
    /// Streams begun for it so far.
    #[serde(default)]
    pub tries: u32,
}

impl From<annulus_handoff::TransferRow> for TransferRow {
    fn from(row: annulus_handoff::TransferRow) -> Self {
        // Taken apart field by field, so that a field added there does not compile until it is here.
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

/// `transfers limit`: how much may move at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitsRow {
    /// For each node that has no setting of its own.
    pub cluster: LimitRow,
    /// What holds for each node.
    pub nodes: Vec<LimitRow>,
}

/// The limits of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitRow {
    /// Its name; none for the cluster.
    pub node: Option<String>,
    /// Transfers sent at once.
    pub outgoing: u16,
    /// Transfers taken in at once.
    pub incoming: u16,
    /// Bytes of items sent in a second; none without a limit.
    pub bytes_per_second: Option<u64>,
    /// Is everything held that is not sealed?
    pub paused: bool,
    /// Which of these were set for it; the others come from the cluster or are defaults.
    pub set: Vec<String>,
}

/// One module of `modules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRow {
    /// Its name.
    pub name: String,
    /// Release number, from 1.
    pub version: u64,
    /// The guest's own version string.
    pub guest_version: String,
    /// SHA-256 of the component.
    pub digest: String,
    /// Replicas.
    pub n: u8,
    /// Read quorum.
    pub r: u8,
    /// Write quorum.
    pub w: u8,
    /// `memory` or `durable`.
    pub storage: String,
    /// The component that each node runs.
    pub nodes: BTreeMap<String, String>,
    /// The version that each node runs: two versions may have the same component.
    #[serde(default)]
    pub versions: BTreeMap<String, u64>,
    /// Nodes that cannot run it, and why: they are offered as no replica of it.
    #[serde(default)]
    pub unable: BTreeMap<String, String>,
    /// How long one call of its guest may take, in milliseconds.
    #[serde(default)]
    pub call_ms: Option<u64>,
    /// Its settings, as `--set` takes them.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Earlier releases that `rollback --to` can go back to, newest first.
    #[serde(default)]
    pub earlier: Vec<ReleaseRow>,
}

/// An earlier release of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseRow {
    /// Release number.
    pub version: u64,
    /// The guest's own version string; empty if this build cannot read the release's description.
    pub guest_version: String,
    /// SHA-256 of the component.
    pub digest: String,
    /// How long one call of its guest may take, in milliseconds.
    #[serde(default)]
    pub call_ms: Option<u64>,
    /// The settings that come back with it; none where they are not kept (before state level 3).
    pub settings: Option<BTreeMap<String, String>>,
}

/// What `deploy` and `rollback` did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployedRow {
    /// The module.
    pub name: String,
    /// The release that runs now.
    pub version: u64,
    /// Its component.
    pub digest: String,
    /// How many nodes run it.
    pub nodes: usize,
    /// Items that the swap carried over, on all nodes together.
    pub swapped_items: u64,
    /// The longest that any vnode stood still for it, in microseconds.
    pub longest_stall_us: u64,
    /// Partitions whose old guest ended within the swap, and took with it what it kept in memory.
    #[serde(default)]
    pub lost: Vec<u16>,
    /// Members that could not be reached: they follow when they are back.
    pub unreached: Vec<String>,
    /// The module had this component and these settings already: no new version was made.
    #[serde(default)]
    pub unchanged: bool,
}

/// `token`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenRow {
    /// To be said to `join`.
    pub token: String,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: u64,
    /// Where to join: the addressed node.
    pub address: String,
}

/// `locate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocateRow {
    /// SHA-1 of the canonical key, hex.
    pub hash: String,
    /// Partition id.
    pub partition: u16,
    /// The partition's 160-bit index, decimal.
    pub index: String,
    /// Empty where no node was asked.
    pub preference_list: Vec<PreferenceRow>,
}

/// One node of a preference list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreferenceRow {
    /// Its name.
    pub node: String,
    /// `primary` or `fallback`.
    pub role: String,
}

/// `status`: one node's own view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusRow {
    /// The addressed node.
    pub node: String,
    /// The cluster's id.
    pub cluster: String,
    /// Version of this program.
    pub version: String,
    /// Its QUIC address.
    pub listen: String,
    /// Its HTTP address, reserved.
    pub http: String,
    /// The claimant, if one is known.
    pub claimant: Option<String>,
    /// Can changes be committed, as far as this node knows?
    pub quorum: bool,
    /// Index of the last control entry applied here.
    pub applied: u64,
    /// Members that are not removed.
    pub members: usize,
    /// Those of them that this node hears from.
    pub alive: usize,
    /// Partitions whose replica set changes.
    pub pending: usize,
    /// Transfers under way or waiting here.
    pub transfers: usize,
    /// Modules that are deployed.
    pub modules: usize,
    /// Vnodes that run here.
    pub vnodes: usize,
    /// Vnodes that serve nothing and keep the items that a recovery gave away, while this node runs.
    #[serde(default)]
    pub aside: usize,
    /// Things that an operator should look at.
    pub alerts: Vec<String>,
    /// Partitions whose items may be gone, with a node that was removed, started again or was away at a
    /// recovery, until somebody says `status --acknowledge`.
    #[serde(default)]
    pub possible_loss: Vec<super::plan_rows::LossRow>,
    /// Number of the newest incident of this node that the alerts tell of; 0 for none.
    #[serde(default)]
    pub newest_incident: u64,
    /// Level of the cluster's state: what all members speak, and may be used.
    #[serde(default)]
    pub level: u32,
    /// What this node speaks.
    #[serde(default)]
    pub speaks: Speaks,
    /// Members because of which the level is not this node's newest.
    #[serde(default)]
    pub held_back_by: Vec<String>,
}

/// The end of a coverage call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageRow {
    /// Did every partition answer?
    pub complete: bool,
    /// Those that did not.
    pub missing: Vec<u16>,
    /// Those of `missing` whose guest ended over the command and took the items with it that it kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<u16>,
    /// Those of `missing` in which a command that writes may have done something. In the others of them it
    /// did nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsure: Vec<u16>,
}

/// What a load measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// The load itself.
    #[serde(flatten)]
    pub load: Measured,
    /// The same loop against another node's transport, without a vnode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane_echo: Option<Measured>,
    /// One vnode of native code, in the actor that wasm runs in, asked without routing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<Measured>,
    /// One vnode of the module, asked just as `native` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wasm: Option<Measured>,
}

/// Numbers of one closed loop; latencies of requests that were answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Requests that were answered without an error.
    pub ops: u64,
    /// Requests that were not.
    pub errors: u64,
    /// How long it took.
    pub seconds: f64,
    /// `ops / seconds`.
    pub ops_per_s: f64,
    /// Median, microseconds.
    pub p50_us: u64,
    /// 99 %, microseconds.
    pub p99_us: u64,
    /// 99.9 %, microseconds.
    pub p999_us: u64,
    /// The slowest, microseconds.
    pub max_us: u64,
    /// How often each error code came.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub error_codes: BTreeMap<String, u64>,
}
