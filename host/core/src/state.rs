//! The cluster's one truth: members, ring, modules, tokens, as a state machine.
//!
//! Every change is a [`Command`], ordered by the control plane's log; [`ClusterState::apply`]
//! is deterministic, takes no clock and no randomness, and refuses what no longer holds when
//! its turn comes. Every node applies the same entries, so two nodes never own different
//! truths for the same index (DESIGN.md D3).

mod apply;
mod change;
mod deploy;
mod due;
mod handoff;
mod level;
mod lookup;
mod plan;
mod recover;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Digest, ModuleUid, NodeId, NodeUid, TransferId};
use crate::keyspace::{PartitionId, RingSize};
use crate::ring::RingTable;

pub use apply::MAX_WIDTH;
pub use change::{Change, Loss};
use level::first_level;

pub use handoff::{
    EffectiveLimits, HandoffChange, HandoffLimits, HandoffSettings, INCOMING_AT_ONCE, LEAST_BYTES_PER_SECOND,
    MOST_OUTGOING, OUTGOING_AT_ONCE, Rate,
};
pub use level::level_of;
pub use plan::{Load, Move, Plan, Share, Warning, plan};
pub use recover::{Answer, Recovery};

/// Which of several histories of one cluster a state belongs to: `recover --force` starts a
/// new one (R19). Ordered by number first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lineage {
    /// Counts from 0.
    pub number: u64,
    /// Random; tells two lineages of one number apart.
    pub id: u64,
}

/// Where a member is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberStatus {
    /// Admitted; learns the log; owns nothing yet.
    Joining,
    /// Takes part.
    Member,
    /// Hands off what it holds; ends when it holds nothing.
    Leaving,
    /// Marked down by an operator.
    Down,
    /// Gone for good; its name is free again.
    Removed,
}

impl fmt::Display for MemberStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Member => "member",
            Self::Leaving => "leaving",
            Self::Down => "down",
            Self::Removed => "removed",
        })
    }
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id in Raft and in the ring.
    pub id: NodeId,
    /// Its data directory.
    pub uid: NodeUid,
    /// `name@host`, unique among members that are not removed.
    pub name: String,
    /// UDP address of its QUIC endpoint, `host:port`.
    pub listen: String,
    /// Address kept for its HTTP gateway, `host:port`.
    pub http: String,
    /// Failure domain, if it has one.
    pub zone: Option<String>,
    /// Share of the ring relative to others, at least 1, and 1 where nobody says.
    pub weight: u32,
    /// Where it is in its life.
    pub status: MemberStatus,
    /// While `joining`: it was admitted to wait for a plan, and only a plan makes it a member.
    #[serde(default)]
    pub staged: bool,
    /// Once `removed`: by force, so peers refuse it whatever it shows (R3). One that left is not:
    /// it is still told that it has.
    #[serde(default)]
    pub banned: bool,
}

/// One release of a module: a component that was deployed under its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Counts from 1 per module.
    pub version: u64,
    /// The component.
    pub digest: Digest,
    /// Length of the component in bytes.
    pub bytes: u64,
    /// What `describe` said, as CBOR (opaque here; the host's `wasm::Description`).
    #[serde(with = "serde_bytes")]
    pub description: Vec<u8>,
    /// CBOR map that `init` gets; of a release from before state level 3 the module's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Vec<u8>>,
    /// How long one call of its guest may take, in milliseconds; the host's own limit if none. State
    /// level 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_ms: Option<u64>,
}

/// The largest component that a node takes, in bytes. Compiling is the costliest thing that a caller can ask for;
/// components of interpreted languages have 12 to 18 MB.
pub const MAX_COMPONENT_BYTES: usize = 64 << 20;

/// Milliseconds that a release may allow one call of its guest: what a clock can tell apart, and as long as
/// those may wait whose commands to the same vnode stand behind it.
pub const CALL_MS: std::ops::RangeInclusive<u64> = 10..=300_000;

/// Earlier releases that a module keeps besides the current and the previous one.
pub const OLDER_RELEASES: usize = 8;

/// Where a module's host storage lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// Lost with the process.
    #[default]
    Memory,
    /// On disk.
    Durable,
}

/// A deployed guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Never given twice.
    pub uid: ModuleUid,
    /// Unique among deployed modules; the bucket of its keys (D1).
    pub name: String,
    /// How many replicas hold a partition of it.
    pub n: u8,
    /// How many answer a read.
    pub r: u8,
    /// How many make a write durable before it is acknowledged.
    pub w: u8,
    /// Engine of its host storage.
    pub storage: StorageKind,
    /// CBOR map that `init` gets.
    #[serde(with = "serde_bytes")]
    pub config: Vec<u8>,
    /// What runs.
    pub current: Release,
    /// What `rollback` goes back to.
    pub previous: Option<Release>,
    /// What `rollback --to` may go back to besides, newest first, at most [`OLDER_RELEASES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<Release>,
    /// Log index of the last change of this module.
    pub changed: u64,
}

/// The release of a module that a command is about: refused where another one runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModuleBase {
    /// The module, of which another may have the name by now.
    pub uid: ModuleUid,
    /// Its current version.
    pub version: u64,
}

impl Module {
    /// What runs now, for a command that is about it.
    pub fn base(&self) -> ModuleBase {
        ModuleBase { uid: self.uid, version: self.current.version }
    }

    /// Its releases that a node has to be able to run or to go back to, the current one first.
    pub fn releases(&self) -> impl Iterator<Item = &Release> {
        std::iter::once(&self.current).chain(&self.previous).chain(&self.older)
    }
}

/// Everything that the cluster has agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Made at the founding.
    pub cluster: ClusterId,
    /// Which history.
    pub lineage: Lineage,
    /// Index of the last entry applied.
    pub applied: u64,
    /// How many replicas the ring's table has for a partition, where there are nodes enough.
    pub width: u8,
    /// By id; removed members stay as tombstones.
    pub members: BTreeMap<NodeId, Member>,
    /// Who holds what.
    pub ring: RingTable,
    /// By uid.
    pub modules: BTreeMap<ModuleUid, Module>,
    /// PEM certificates of the authorities that sign nodes and operators (R20).
    pub authorities: Vec<String>,
    /// PEM key of the newest authority.
    pub authority_key: String,
    /// SHA-256 of each join token's secret -> when it ends, in milliseconds since 1970.
    pub tokens: BTreeMap<Digest, u64>,
    /// Changes that wait for a commit, in the order in which they were staged.
    #[serde(default)]
    pub staged: Vec<Change>,
    /// Log index of the last change of `staged`, and from state level 3 on of the mark as down of a node
    /// that is to be replaced: what a plan does depends on both.
    #[serde(default)]
    pub stage_version: u64,
    /// Partitions whose items may be gone with a removed owner, until an operator has seen it.
    #[serde(default)]
    pub losses: BTreeMap<PartitionId, Loss>,
    /// How much may move at once.
    #[serde(default)]
    pub handoff: HandoffSettings,
    /// Which commands and formats may be used: what every member speaks (`version`).
    #[serde(default = "first_level")]
    pub level: u32,
}

/// The state machine from the first entry on: nothing until [`Command::Found`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Machine {
    /// What was agreed on; `None` before the founding.
    pub state: Option<ClusterState>,
}

/// One entry of the control plane's log. New kinds are added at the end (R22 holds for our
/// own formats too).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first entry of a cluster: its founder and its settings. Refused on a founded one.
    Found {
        /// The cluster's id.
        cluster: ClusterId,
        /// Number of partitions.
        ring_size: RingSize,
        /// Target replica count of the table.
        width: u8,
        /// The founder (`id` 0).
        founder: Member,
        /// PEM certificate of the authority it made.
        authority: String,
        /// PEM key of it.
        authority_key: String,
        /// The state's level from the beginning.
        #[serde(default = "first_level")]
        level: u32,
    },
    /// Remembers a join token until `expires_ms`; forgets those that ended before `now_ms`.
    IssueToken {
        /// SHA-256 of the secret.
        token: Digest,
        /// Proposer's clock, milliseconds since 1970.
        now_ms: u64,
        /// When the token ends, by the same clock.
        expires_ms: u64,
    },
    /// Admits a node as `joining`; its id is this entry's index. Refused if the name is taken
    /// or the token unknown or over. The same uid again answers the id that it has.
    Admit {
        /// The node; `id` and `status` are ignored.
        member: Member,
        /// SHA-256 of the token's secret.
        token: Digest,
        /// Proposer's clock, milliseconds since 1970.
        now_ms: u64,
    },
    /// `joining` -> `member`: it has caught up with the log.
    Joined {
        /// Who.
        node: NodeId,
    },
    /// `member` -> `leaving`. Refused for the last one.
    Leave {
        /// Who.
        node: NodeId,
    },
    /// `leaving` or `joining` -> `removed`: it holds nothing and is in no pending set.
    Removed {
        /// Who.
        node: NodeId,
    },
    /// Aims the ring at a new table. Refused if the ring's epoch is no longer `base`.
    /// A partition whose pending set is already this keeps its transfer; one whose committed
    /// set is this cancels what is pending; any other gets a new transfer with this entry's
    /// index as id.
    Rebalance {
        /// The ring's epoch that the table was computed from.
        base: u64,
        /// Ordered replica set of every partition.
        table: Vec<Vec<NodeId>>,
    },
    /// The transfers are complete: pending sets become the replica sets. Each id that is not
    /// pending (any more) is refused by itself; the others happen.
    Flip {
        /// Partition and transfer of each.
        transfers: Vec<(PartitionId, TransferId)>,
    },
    /// Gives up a transfer and starts it again under a new id (this entry's index): what its
    /// receiver has staged is dropped, the seal is lifted (R1).
    Cancel {
        /// The partition.
        partition: PartitionId,
        /// The transfer.
        transfer: TransferId,
    },
    /// First or further release of a module by name.
    Deploy {
        /// The module's name.
        name: String,
        /// Replicas; with `r`, `w`, `storage` and `config` kept as they are by a further
        /// release where `None`.
        n: Option<u8>,
        /// Read quorum.
        r: Option<u8>,
        /// Write quorum.
        w: Option<u8>,
        /// Engine.
        storage: Option<StorageKind>,
        /// CBOR map for `init`.
        config: Option<Vec<u8>>,
        /// `version` is ignored: it becomes the last one plus 1.
        release: Release,
        /// The version that the proposer saw running, 0 for none: refused if it changed since.
        base_version: u64,
    },
    /// Runs an earlier release again, as a new version.
    Rollback {
        /// The module's name.
        name: String,
        /// The release that the proposer saw running. State level 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<ModuleBase>,
        /// The version of the release; the previous one if none. State level 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
    },
    /// Ends a module and its items.
    Undeploy {
        /// The module's name.
        name: String,
        /// The release that the proposer saw running. State level 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<ModuleBase>,
    },
    /// A member that came back under other addresses.
    Moved {
        /// Who.
        node: NodeId,
        /// UDP address of its QUIC endpoint.
        listen: String,
        /// Address kept for HTTP.
        http: String,
    },
    /// Adds a change to those that wait for a commit. Refused where it could not follow them.
    Stage {
        /// What.
        change: Change,
    },
    /// Forgets every staged change. Nodes that joined with one go on waiting.
    ClearStaged,
    /// Carries out what is staged, as one rebalancing. Refused if the staged changes or the ring
    /// are no longer those that the table was computed from.
    Commit {
        /// `stage_version` of the plan.
        stage: u64,
        /// The ring's epoch of the plan.
        base: u64,
        /// The table of the plan.
        table: Vec<Vec<NodeId>>,
    },
    /// Carries out one change that was never staged.
    Change {
        /// What.
        change: Change,
        /// The ring's epoch that the table was computed from.
        base: u64,
        /// The table that follows from it.
        table: Vec<Vec<NodeId>>,
        /// Whether the node that goes was marked as down when it was planned. State level 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        down: Option<bool>,
    },
    /// `member` -> `down`: an operator says that it is away. It keeps its share.
    Down {
        /// Who.
        node: NodeId,
    },
    /// `down` -> `member`: it is back.
    Up {
        /// Who.
        node: NodeId,
    },
    /// A member that came back with another zone or weight; `None` keeps what is known.
    Placed {
        /// Who.
        node: NodeId,
        /// Failure domain.
        zone: Option<String>,
        /// Share of the ring relative to others, at least 1.
        weight: Option<u32>,
    },
    /// An operator has seen the losses up to this index: they are forgotten.
    Acknowledge {
        /// Log index.
        up_to: u64,
    },
    /// Changes how much may move at once. State level 2.
    SetHandoff {
        /// Of one node; of every node that has no setting of its own where none.
        node: Option<NodeId>,
        /// All of them, or none.
        changes: Vec<HandoffChange>,
    },
    /// Raises the state's level. Refused unless `known` are all the members that are not removed:
    /// those of whom the proposer knows that they speak it.
    Raise {
        /// The level.
        level: u32,
        /// Who speaks it.
        known: Vec<NodeId>,
    },
    /// A node has lost items of these partitions in a restart, or keeps some aside that the present owner does
    /// not have. State level 3.
    Lost {
        /// The node.
        node: NodeId,
        /// The partitions.
        partitions: Vec<PartitionId>,
    },
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It happened.
    Done,
    /// The node was admitted (or had been) under this id.
    Admitted(NodeId),
    /// The module runs this version now.
    Deployed(ModuleUid, u64),
    /// Which transfers of a `Flip` happened. With their partitions: one rebalance gives all of
    /// its transfers one id.
    Flipped(Vec<(PartitionId, TransferId)>),
    /// It changed nothing, and why.
    Refused(Refusal),
}

/// Why an entry changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// `Found` on a founded cluster, or anything else before it.
    #[error("the cluster is founded already, or not yet")]
    Founding,
    /// No such member, or it is removed.
    #[error("no member {0}")]
    NotMember(String),
    /// A member of that name exists.
    #[error(
        "a member named {0} exists; a node that lost its data directory needs a new name, or remove the old one first"
    )]
    NameTaken(String),
    /// The join token is unknown or over.
    #[error(
        "the join token is not valid (any more): print a new one with `annulus token`; if a new one is refused too, the clocks of the members differ"
    )]
    BadToken,
    /// The member's status does not allow it.
    #[error("{node} is {status}")]
    Status {
        /// Who.
        node: String,
        /// What it is.
        status: String,
    },
    /// Nobody would be left.
    #[error("the last member cannot leave")]
    LastMember,
    /// The ring changed since the table was computed.
    #[error("the ring changed meanwhile")]
    RingChanged,
    /// The table names a partition too many or too few, or a node twice or that is no member.
    #[error("not a table of this ring: {0}")]
    BadTable(String),
    /// The transfer is not pending (any more).
    #[error("transfer {0} is not pending")]
    NotPending(TransferId),
    /// The node still holds partitions.
    #[error("{0} still holds partitions")]
    Holding(String),
    /// No such module.
    #[error("no module named {0} is deployed")]
    NoModule(String),
    /// Another deploy came first.
    #[error("another deploy of {0} came first; look at `annulus modules` and deploy again")]
    DeployRaced(String),
    /// There is no release to go back to.
    #[error("{0} has no release to go back to")]
    NoPrevious(String),
    /// A setting out of range.
    #[error("{0}")]
    BadSetting(String),
    /// There is no plan to commit.
    #[error("nothing is staged: say join, leave, replace or remove with --stage first")]
    NothingStaged,
    /// The plan is not the one that is to be committed.
    #[error("the plan changed meanwhile: look at `annulus plan` again, then commit")]
    PlanChanged,
    /// The node joined to wait for a plan.
    #[error("{0} joined with --stage: it waits for a plan that takes it in")]
    Waits(String),
    /// A change that contradicts those that are staged.
    #[error("it does not go with what is staged already: {0}; `annulus clear` forgets that")]
    Conflict(Box<Refusal>),
    /// A node that holds partitions cannot take another's places.
    #[error("{0} holds partitions itself; only a node that holds nothing can replace another")]
    NotEmpty(String),
    /// A command of a level that the cluster does not use yet.
    #[error("this needs state level {needs} and the cluster is at {level}: {}", who_holds_back(.behind))]
    Level {
        /// The command's.
        needs: u32,
        /// The cluster's.
        level: u32,
        /// The members that do not speak it, or not as far as is known, each with the reason.
        behind: Vec<String>,
    },
    /// The level cannot be raised (any more).
    #[error(
        "the state's level cannot become {0}: a member came that may not speak it, or it is that already"
    )]
    CannotRaise(u32),
    /// `rollback --to` a version that is not kept.
    #[error("{name} has no release {version} to go back to: `annulus modules` shows those that it has")]
    NoRelease {
        /// The module.
        name: String,
        /// The version.
        version: u64,
    },
    /// Another operator changed the module first.
    #[error("{0} was changed meanwhile; look at `annulus modules` and say it again")]
    ModuleChanged(String),
}

/// Who keeps the level down, for people.
fn who_holds_back(behind: &[String]) -> String {
    match behind {
        [] => "it is raised as soon as all members are known to speak it; try again in a moment".to_owned(),
        behind => format!("start a newer build of {} first", behind.join(", ")),
    }
}

#[cfg(test)]
mod tests;
