//! What a request or a bulk stream is about: one number for each, told in its first bytes.
//!
//! The transport knows [`ECHO`] and [`BULK_JOIN`]; the rest it hands on.

/// Data lane: a command for a vnode of the receiving node.
pub const CALL: u8 = 1;
/// Any lane: answered by the transport with the same payload before anybody else sees it: the
/// baseline of a benchmark.
pub const ECHO: u8 = 3;

/// Control lane: Raft's append-entries.
pub const RAFT_APPEND: u8 = 16;
/// Control lane: Raft's vote.
pub const RAFT_VOTE: u8 = 17;
/// Control lane: Raft's install-snapshot.
pub const RAFT_SNAPSHOT: u8 = 18;
/// Control lane: a command for the leader to propose.
pub const PROPOSE: u8 = 19;

/// Control lane: get a component ready.
pub const MODULE_PREPARE: u8 = 24;
/// Control lane: how far a node is with a release.
pub const MODULE_RUNNING: u8 = 25;
/// Control lane: the transfers that a node sends.
pub const TRANSFERS: u8 = 26;
/// Control lane: how many items a node's partitions have.
pub const HOLDINGS: u8 = 29;

/// Control lane: what a node cannot serve.
pub const MODULES_UNABLE: u8 = 31;

/// Bulk: a node that wants to join; all that a peer without a certificate may open.
pub const BULK_JOIN: u8 = 32;
/// Bulk: an operator's request.
pub const BULK_ADMIN: u8 = 33;
/// Bulk: a partition on its way to another node.
pub const BULK_HANDOFF: u8 = 34;
/// Bulk: a component.
pub const BULK_ARTEFACT: u8 = 35;

/// Control lane: what Raft says in a lineage after the first (R19).
pub const OF_LINEAGE: u8 = 64;
/// Control lane: a recovery has begun another lineage; answered by who has taken it over.
pub const RECOVERED: u8 = 65;
/// Control lane: what is known of a node that starts.
pub const STARTS: u8 = 66;

/// Is it for the control plane?
pub fn is_control(kind: u8) -> bool {
    (RAFT_APPEND..MODULE_PREPARE).contains(&kind) || (OF_LINEAGE..=STARTS).contains(&kind)
}
