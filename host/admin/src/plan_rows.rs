//! Output of `plan`, `commit` and related verbs. Fields may be added, but none may be renamed.
//!
//! ```text
//! plan    {"plan": id or null, "epoch", "changes": [{"change", "node", "by"}],
//!          "nodes": [{"node", "status", "becomes", "owned", "will_own", "replicas", "will_hold",
//!                     "items_in", "bytes_in", "items_out", "bytes_out"}],
//!          "moves": [{"partition", "from", "to", "owner", "under_way", "items", "bytes"}],
//!          "warnings": [{"code", "message"}], "shown": id or null}
//! commit  {"plan", "index", "changes", "moved": number of partitions with a new owner,
//!          "possible_loss": [partition], "settled": bool}   (also `remove` and `replace`)
//! clear   {"changes"}                                       (also every verb with `--stage`)
//! ```
//!
//! `change` is `join`, `leave`, `replace` or `remove`; `by` is the replacing node. Items and bytes are null
//! if a node that should know them did not answer. In this version only owners hold items, so a move that
//! does not change the owner carries none. Codes of warnings: `possible-loss`, `too-few-nodes`,
//! `too-few-zones`, `node-down`, `joiner-waits`.

use serde::{Deserialize, Serialize};

/// Effect of a set of changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRow {
    /// Id of the plan, for `commit`. It stays the same as long as the effect stays the same. None if nothing
    /// is staged.
    pub plan: Option<String>,
    /// Epoch of the ring from which the plan was computed.
    pub epoch: u64,
    /// Changes, in the order in which they were staged.
    pub changes: Vec<ChangeRow>,
    /// Every node that is not removed, with its shares.
    pub nodes: Vec<ShareRow>,
    /// Moves, ordered by partition.
    pub moves: Vec<MoveRow>,
    /// Warnings to read before a commit.
    pub warnings: Vec<WarningRow>,
    /// Id of the plan that this node showed to an operator before this one.
    pub shown: Option<String>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRow {
    /// `join`, `leave`, `replace` or `remove`.
    pub change: String,
    /// Name of the node.
    pub node: String,
    /// Name of the replacing node; only for `replace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// One node before and after the changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRow {
    /// Name of the node.
    pub node: String,
    /// Present status.
    pub status: String,
    /// Status after the commit.
    pub becomes: String,
    /// Number of partitions of which the node is the owner.
    pub owned: usize,
    /// The same after all moves.
    pub will_own: usize,
    /// Number of partitions of which the node holds a replica.
    pub replicas: usize,
    /// The same after all moves.
    pub will_hold: usize,
    /// Number of items that the node receives; null if unknown.
    pub items_in: Option<u64>,
    /// Size of the received items in bytes; null if unknown.
    pub bytes_in: Option<u64>,
    /// Number of items that the node sends; null if unknown.
    pub items_out: Option<u64>,
    /// Size of the sent items in bytes; null if unknown.
    pub bytes_out: Option<u64>,
}

/// A node that becomes the owner, or a further replica, of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRow {
    /// Id of the partition.
    pub partition: u16,
    /// Name of the sending node.
    pub from: String,
    /// Name of the receiving node.
    pub to: String,
    /// True if the receiver becomes the owner.
    pub owner: bool,
    /// True if the transfer is already running, whether or not the plan is committed.
    pub under_way: bool,
    /// Number of items of all modules; null if the sender did not report it.
    pub items: Option<u64>,
    /// Size of the items in bytes; null if the sender did not report it.
    pub bytes: Option<u64>,
}

/// A warning to read before a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarningRow {
    /// Stable code.
    pub code: String,
    /// Message for people.
    pub message: String,
}

/// The staged changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRow {
    /// Changes, in the order in which they were staged.
    pub changes: Vec<ChangeRow>,
}

/// Result of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedRow {
    /// Id of the plan.
    pub plan: String,
    /// Log index of the committed entry.
    pub index: u64,
    /// The changes of the plan.
    pub changes: Vec<ChangeRow>,
    /// Number of partitions that are handed off to another owner.
    pub moved: usize,
    /// Number of partitions of removed nodes that other nodes now own without a handoff.
    #[serde(default)]
    pub taken_over: usize,
    /// Partitions whose items may be lost with a removed node.
    pub possible_loss: Vec<u16>,
    /// True if all partitions have moved and all leaving nodes have left.
    pub settled: bool,
}

/// Partitions whose items may be lost, as `status` shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossRow {
    /// Name of the owner, which was removed, was restarted, or was away at a recovery.
    pub node: String,
    /// Log index of the entry that recorded the loss.
    pub index: u64,
    /// Ids of the partitions.
    pub partitions: Vec<u16>,
}
