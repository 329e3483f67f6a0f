//! What Raft is made of here: its types, its clock, its thread.

use std::io::Cursor;
use std::time::Duration;

use annulus_core::state::{Command, Outcome};
use openraft::{Config, EmptyNode, SnapshotPolicy};

openraft::declare_raft_types!(
    /// Raft over [`Command`]s. A node's address is not in Raft's membership but in the member
    /// table, because it may change over a restart.
    pub RaftTypes:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = EmptyNode,
        AsyncRuntime = super::raft_runtime::GroundRuntime,
);

/// What applying an entry gave: nothing for Raft's own entries.
pub type Applied = Option<Outcome>;

/// A running Raft.
pub type Raft = openraft::Raft<RaftTypes>;
/// One entry of the log.
pub type Entry = openraft::Entry<RaftTypes>;
/// Place of an entry.
pub type LogId = openraft::LogId<u64>;
/// Promise of a node not to follow an older leader.
pub type Vote = openraft::Vote<u64>;
/// Voters and learners, with the entry that says so.
pub type StoredMembership = openraft::StoredMembership<u64, EmptyNode>;
/// Failure of the storage under Raft.
pub type StorageError = openraft::StorageError<u64>;

/// A leader's word to its followers, and how long an answer to it may take.
///
/// openraft looks at its timers every 1.5 intervals, and that waits for a beat, so heartbeats leave every 320 ms. The same
/// number limits an append on the follower, fsync included; a slower disk only causes a retry.
pub const HEARTBEAT: Duration = Duration::from_millis(200);

/// Shortest wait of a follower, after the leader's lease is over, before it stands for election.
pub const ELECTION_MIN: Duration = Duration::from_millis(500);

/// Longest such wait, and the leader's lease. A follower that had a leader stands after lease +
/// wait, 1.5 to 2 s of silence or five heartbeats: two cores that run three nodes and a
/// compiler delay a thread by hundreds of milliseconds, not by that. Nothing but changes of
/// members, ownership or modules waits for an election, so a second more costs little.
pub const ELECTION_MAX: Duration = Duration::from_millis(1000);

/// A new snapshot after so many entries. One is a copy of the state, some 10 to 500 KB.
const SNAPSHOT_EVERY: u64 = 1000;

/// Entries kept behind a snapshot, so that a node that was away for a moment needs only those.
const KEEP_ENTRIES: u64 = 500;

/// Most entries in one message: a table of the largest ring is some 50 KB, far below a frame.
const MAX_ENTRIES: u64 = 64;

/// Bytes of a snapshot in one message.
const SNAPSHOT_CHUNK: u64 = 256 * 1024;

/// One chunk of a snapshot, sent, written and synced.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// How a leader's changes wait at most: adding a learner, changing voters.
pub const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(5);

/// Raft's settings.
pub fn config(cluster: String) -> Config {
    let millis = |duration: Duration| duration.as_millis() as u64;
    Config {
        cluster_name: cluster,
        heartbeat_interval: millis(HEARTBEAT),
        election_timeout_min: millis(ELECTION_MIN),
        election_timeout_max: millis(ELECTION_MAX),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        snapshot_max_chunk_size: SNAPSHOT_CHUNK,
        max_payload_entries: MAX_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEEP_ENTRIES,
        ..Config::default()
    }
}
