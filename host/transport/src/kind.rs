//! Message kinds: one number per kind of request or bulk stream, sent with its first bytes.
//!
//! The transport itself knows [`ECHO`] and [`BULK_JOIN`] only. The node's router dispatches on the others.

/// Data lane: a command for a vnode of the receiving node.
pub const CALL: u8 = 1;
/// Data lane: a question or the items of a write for another replica of a partition (state level 6).
pub const REPLICA: u8 = 2;
/// Any lane: the transport echoes the payload before any other code sees it. Benchmarks use it as their
/// baseline.
pub const ECHO: u8 = 3;

/// Control lane: Raft's append-entries.
pub const RAFT_APPEND: u8 = 16;
/// Control lane: Raft's vote.
pub const RAFT_VOTE: u8 = 17;
/// Control lane: Raft's install-snapshot.
pub const RAFT_SNAPSHOT: u8 = 18;
/// Control lane: a command for the leader to propose.
pub const PROPOSE: u8 = 19;
/// Control lane: a node's own address.
pub const ANNOUNCE: u8 = 20;
/// Control lane: the receiver's state, if newer than a given index.
pub const FETCH_STATE: u8 = 21;
/// Control lane: the addresses that a node knows.
pub const ADDRESSES: u8 = 22;

/// Control lane: prepare a component.
pub const MODULE_PREPARE: u8 = 24;
/// Control lane: the progress of a node with a release.
pub const MODULE_RUNNING: u8 = 25;
/// Control lane: a node's outgoing transfers.
pub const TRANSFERS: u8 = 26;
/// Control lane: the number of items in a node's partitions.
pub const HOLDINGS: u8 = 29;
/// Control lane: the modules that a node cannot run.
pub const MODULES_UNABLE: u8 = 31;

/// Bulk: a node's wish to join. The only kind that a peer without a certificate may open.
pub const BULK_JOIN: u8 = 32;
/// Bulk: an operator's request.
pub const BULK_ADMIN: u8 = 33;
/// Bulk: a partition in transfer to another node.
pub const BULK_HANDOFF: u8 = 34;
/// Bulk: a component.
pub const BULK_ARTEFACT: u8 = 35;

/// Control lane: a Raft message of a lineage after the first (R19).
pub const OF_LINEAGE: u8 = 64;
/// Control lane: the report that a recovery has started another lineage. Nodes that have adopted the lineage
/// respond.
pub const RECOVERED: u8 = 65;
/// Control lane: what peers know about the starts of a node.
pub const STARTS: u8 = 66;
