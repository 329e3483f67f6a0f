//! What `plan`, `commit` and their kin show. Fields may be added, none renamed.
//!
//! ```text
//! plan    {"plan": id or null, "epoch", "changes": [{"change", "node", "by"}],
//!          "nodes": [{"node", "status", "becomes", "owned", "will_own", "replicas", "will_hold",
//!                     "items_in", "bytes_in", "items_out", "bytes_out"}],
//!          "moves": [{"partition", "from", "to", "owner", "under_way", "items", "bytes"}],
//!          "warnings": [{"code", "message"}], "shown": id or null}
//! commit  {"plan", "index", "changes", "moved": partitions with a new owner,
//!          "possible_loss": [partition], "settled": bool}   (`remove` and `replace` too)
//! clear   {"changes"}                                       (whatever has --stage too)
//! ```
//!
//! `change` is `join`, `leave`, `replace` or `remove`; `by` is who replaces. Items and bytes are
//! null where a node that should know did not answer. Only owners hold items in this version, so
//! a move that is not one of an owner carries none. Codes of warnings: `possible-loss`,
//! `too-few-nodes`, `too-few-zones`, `node-down`, `joiner-waits`.

use serde::{Deserialize, Serialize};

/// What a set of changes would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRow {
    /// Names it for `commit`: the same as long as it does the same. None where nothing is staged.
    pub plan: Option<String>,
    /// The ring's epoch that it was made from.
    pub epoch: u64,
    /// In the order in which they were staged.
    pub changes: Vec<ChangeRow>,
    /// Every node that is not removed.
    pub nodes: Vec<ShareRow>,
    /// By partition.
    pub moves: Vec<MoveRow>,
    /// What to know first.
    pub warnings: Vec<WarningRow>,
    /// The plan that this node has shown last.
    pub shown: Option<String>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRow {
    /// `join`, `leave`, `replace` or `remove`.
    pub change: String,
    /// Who.
    pub node: String,
    /// Who replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// One node before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRow {
    /// Its name.
    pub node: String,
    /// What it is.
    pub status: String,
    /// What the commit makes of it.
    pub becomes: String,
    /// Partitions that it is the first replica of.
    pub owned: usize,
    /// When all has moved.
    pub will_own: usize,
    /// Partitions of which it holds a replica.
    pub replicas: usize,
    /// When all has moved.
    pub will_hold: usize,
    /// Items that come to it; null where that is not known.
    pub items_in: Option<u64>,
    /// Their bytes.
    pub bytes_in: Option<u64>,
    /// Items that go from it.
    pub items_out: Option<u64>,
    /// Their bytes.
    pub bytes_out: Option<u64>,
}

/// One node that comes to own a partition or to hold a further replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRow {
    /// Which partition.
    pub partition: u16,
    /// Who gives.
    pub from: String,
    /// Who takes.
    pub to: String,
    /// As its owner.
    pub owner: bool,
    /// It goes on already, plan or not.
    pub under_way: bool,
    /// Items of all modules; null where the giver does not say.
    pub items: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
}

/// What an operator should know before a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarningRow {
    /// A stable word.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What is staged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRow {
    /// In order.
    pub changes: Vec<ChangeRow>,
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedRow {
    /// Id of the plan.
    pub plan: String,
    /// Log index of the entry.
    pub index: u64,
    /// What it consisted of.
    pub changes: Vec<ChangeRow>,
    /// Partitions that get another owner, one after the other.
    pub moved: usize,
    /// Partitions that a removed node owned, and that others own now without having been handed them.
    #[serde(default)]
    pub taken_over: usize,
    /// Partitions whose items may be gone with a removed node.
    pub possible_loss: Vec<u16>,
    /// Has everything moved, and has everybody gone who was to go?
    pub settled: bool,
}

/// Partitions whose items may be gone, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossRow {
    /// Who owned them and was removed.
    pub node: String,
    /// Log index of its removal.
    pub index: u64,
    /// Which.
    pub partitions: Vec<u16>,
}
