//! Raft's types and settings.

use std::io::Cursor;
use std::time::Duration;

use annulus_core::state::{Command, Outcome};
use openraft::{Config, EmptyNode, SnapshotPolicy};

openraft::declare_raft_types!(
    /// Raft over [`Command`]s. A node's address is in the member table and not in Raft's membership, because
    /// it may change with a restart.
    pub RaftTypes:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = EmptyNode,
        AsyncRuntime = super::raft_runtime::GroundRuntime,
);

/// Outcome of an applied entry; `None` for Raft's own entries.
pub type Applied = Option<Outcome>;

/// A running Raft.
pub type Raft = openraft::Raft<RaftTypes>;
/// One entry of the log.
pub type Entry = openraft::Entry<RaftTypes>;
/// Position of an entry.
pub type LogId = openraft::LogId<u64>;
/// A node's promise not to follow an older leader.
pub type Vote = openraft::Vote<u64>;
/// Voters and learners, with the entry that set them.
pub type StoredMembership = openraft::StoredMembership<u64, EmptyNode>;
/// Failure of the storage under Raft.
pub type StorageError = openraft::StorageError<u64>;

/// Interval of heartbeats, and longest wait for a reply to one.
///
/// openraft checks its timers every 1.5 intervals, and each check waits for a beat, so heartbeats leave every
/// 320 ms. The same limit holds for an append on the follower, fsync included; a slower disk only causes a
/// retry.
pub const HEARTBEAT: Duration = Duration::from_millis(200);

/// Shortest wait of a follower between the end of the leader's lease and its own candidacy.
pub const ELECTION_MIN: Duration = Duration::from_millis(500);

/// Longest such wait, and the leader's lease. A follower that had a leader stands for election after lease +
/// wait, which is 1.5 to 2 s of silence or five heartbeats: two cores that run three nodes and a compiler
/// delay a thread by hundreds of milliseconds, not by seconds. Only changes of members, ownership or modules
/// wait for an election, so a second more costs little.
pub const ELECTION_MAX: Duration = Duration::from_millis(1000);

/// Number of entries between two snapshots. A snapshot is a copy of the state, some 10 to 500 KB.
const SNAPSHOT_EVERY: u64 = 1000;

/// Number of entries kept behind a snapshot, for nodes that were away for a moment.
const KEEP_ENTRIES: u64 = 500;

/// Maximum number of entries in one message. A table of the largest ring is some 50 KB, far below a frame.
const MAX_ENTRIES: u64 = 64;

/// Maximum number of bytes of a snapshot in one message.
const SNAPSHOT_CHUNK: u64 = 256 * 1024;

/// Longest time to send, write and sync one chunk of a snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest time for a leader to add a learner or change voters.
pub const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(5);

/// Build Raft's settings.
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
