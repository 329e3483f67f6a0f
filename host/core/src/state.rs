//! The agreed state of the cluster: members, ring, modules and tokens, as a state machine.
//!
//! Every change is a [`Command`], ordered by the control plane's log. [`ClusterState::apply`] is deterministic: it
//! takes no clock and no randomness, and refuses a command that is not valid at its place in the log. Every node
//! applies the same entries, so no two nodes have different states at the same index (DESIGN.md D3).

mod apply;
mod change;
mod check;
mod deploy;
mod due;
mod handoff;
mod level;
mod lookup;
mod plan;
mod proposer;
mod recover;
mod standing;
mod step;
mod token;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Digest, ModuleUid, NodeId, NodeUid, TransferId};
use crate::keyspace::{PartitionId, RingSize};
use crate::quorum::Quorums;
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
pub use standing::Standing;
pub use token::{MAX_TOKEN_MS, MAX_TOKEN_USES, check_limits};

/// One of several histories of a cluster: `recover --force` starts a new one (R19). Lineages are ordered by number
/// first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lineage {
    /// Counts the lineages, from 0.
    pub number: u64,
    /// A random number that distinguishes two lineages of one number.
    pub id: u64,
}

/// The stage of a member's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberStatus {
    /// Admitted. The node catches up with the log and owns nothing yet.
    Joining,
    /// A full member.
    Member,
    /// The node hands off its partitions, and is removed once it has none.
    Leaving,
    /// Marked down by an operator.
    Down,
    /// Removed for good; its name is free again.
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

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's id in Raft and in the ring.
    pub id: NodeId,
    /// The id of its data directory.
    pub uid: NodeUid,
    /// The name `name@host`, unique among members that are not removed.
    pub name: String,
    /// The UDP address of its QUIC endpoint, `host:port`.
    pub listen: String,
    /// The address reserved for its HTTP gateway, `host:port`.
    pub http: String,
    /// The failure domain, if it has one.
    pub zone: Option<String>,
    /// Share of the ring relative to others, at least 1; 1 by default.
    pub weight: u32,
    /// The stage of its life.
    pub status: MemberStatus,
    /// Set while `joining`: the node was admitted to wait for a plan, and only a plan makes it a member.
    #[serde(default)]
    pub staged: bool,
    /// Set while `removed`: the node was removed by force, so peers refuse it (R3). A member that has left still
    /// receives the information that it was removed.
    #[serde(default)]
    pub banned: bool,
    /// SHA-256 of its public key, by which a repeated admission is recognised. State level 6; a member that was
    /// admitted before has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Digest>,
}

/// A release of a module: a component that was deployed under the module's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The version, counted from 1 per module.
    pub version: u64,
    /// The digest of the component.
    pub digest: Digest,
    /// The length of the component in bytes.
    pub bytes: u64,
    /// The output of `describe` as CBOR. It is opaque here; the host decodes it.
    #[serde(with = "serde_bytes")]
    pub description: Vec<u8>,
    /// The CBOR map for `init`. `None` for a release from before state level 3, which uses the module's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Vec<u8>>,
    /// The time limit of one call of its guest, in milliseconds; the host's default if `None`. State level 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_ms: Option<u64>,
}

/// The largest component that a node accepts, in bytes. Compiling is the costliest thing that a caller can ask for;
/// components of interpreted languages have 12 to 18 MB.
pub const MAX_COMPONENT_BYTES: usize = 64 << 20;

/// The range of a release's call limit, in milliseconds. The lower end is the resolution of a clock, the upper end
/// the longest time that further commands to the same vnode may wait.
pub const CALL_MS: std::ops::RangeInclusive<u64> = 10..=300_000;

/// The number of earlier releases that a module keeps besides the current and the previous one.
pub const OLDER_RELEASES: usize = 8;

/// The engine of a module's host storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// In memory; lost with the process.
    #[default]
    Memory,
    /// On disk.
    Durable,
}

impl StorageKind {
    /// Return the place of the items, for messages.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Memory => "in memory (--storage memory)",
            Self::Durable => "on disk (--storage durable)",
        }
    }
}

/// A deployed module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// The module's id, never reused.
    pub uid: ModuleUid,
    /// The name, unique among deployed modules; the bucket of its keys (D1).
    pub name: String,
    /// The number of replicas of a partition.
    pub n: u8,
    /// The number of replicas that answer a read.
    pub r: u8,
    /// The number of replicas that make a write durable before it is acknowledged.
    pub w: u8,
    /// True if a fallback may acknowledge a write instead of a replica that cannot be reached (R6). State level 8.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sloppy: bool,
    /// True if that was so once: there may still be writes that too few replicas have. State level 8.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub had_hints: bool,
    /// The engine of its host storage.
    pub storage: StorageKind,
    /// The CBOR map for `init`.
    #[serde(with = "serde_bytes")]
    pub config: Vec<u8>,
    /// The release that runs.
    pub current: Release,
    /// The release that `rollback` returns to.
    pub previous: Option<Release>,
    /// Further releases for `rollback --to`, newest first, at most [`OLDER_RELEASES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<Release>,
    /// The log index of the module's last change.
    pub changed: u64,
}

impl Module {
    /// Return true if writes may be at fallbacks, instead of replicas that lack them.
    pub fn may_have_hints(&self) -> bool {
        self.sloppy || self.had_hints
    }

    /// Return the quorums for the making of a store.
    pub fn quorums(&self) -> Quorums {
        Quorums { n: self.n.into(), r: self.r.into(), w: self.w.into(), sloppy: self.may_have_hints() }
    }
}

/// The release that a command was made for. The command is refused if another release runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModuleBase {
    /// The module, by uid because another module may have its name by now.
    pub uid: ModuleUid,
    /// The current version of the module.
    pub version: u64,
}

impl Module {
    /// Return the current release, for a command about it.
    pub fn base(&self) -> ModuleBase {
        ModuleBase { uid: self.uid, version: self.current.version }
    }

    /// Iterate over the releases that a node must be able to run, the current one first.
    pub fn releases(&self) -> impl Iterator<Item = &Release> {
        std::iter::once(&self.current).chain(&self.previous).chain(&self.older)
    }
}

/// The agreed state of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// The cluster's id, made at the founding.
    pub cluster: ClusterId,
    /// The lineage of this state.
    pub lineage: Lineage,
    /// The index of the last entry applied.
    pub applied: u64,
    /// The number of replicas of a partition in the ring's table, if the cluster has enough nodes.
    pub width: u8,
    /// The members by id. Removed members stay as tombstones.
    pub members: BTreeMap<NodeId, Member>,
    /// The ring.
    pub ring: RingTable,
    /// The modules by uid.
    pub modules: BTreeMap<ModuleUid, Module>,
    /// PEM certificates of the authorities that sign nodes and operators (R20).
    pub authorities: Vec<String>,
    /// PEM key of the newest authority. Empty from state level 6 on: voters have it in a file.
    pub authority_key: String,
    /// The expiry of each join token by the SHA-256 of its secret, in milliseconds since 1970.
    pub tokens: BTreeMap<Digest, u64>,
    /// The number of nodes that each token still admits. State level 6; a token from before is not counted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub token_uses: BTreeMap<Digest, u32>,
    /// Changes that wait for a commit, in the order in which they were staged.
    #[serde(default)]
    pub staged: Vec<Change>,
    /// The log index of the last change of `staged` and, from state level 3 on, of the last mark as down of a node
    /// that is to be replaced: a plan depends on both.
    #[serde(default)]
    pub stage_version: u64,
    /// Partitions whose items may be lost with a removed owner, until an operator acknowledges that.
    #[serde(default)]
    pub losses: BTreeMap<PartitionId, Loss>,
    /// The limits on handoffs.
    #[serde(default)]
    pub handoff: HandoffSettings,
    /// The level of commands and formats in use, which every member supports (`version`).
    #[serde(default = "first_level")]
    pub level: u32,
}

/// The state machine that applies the log from the first entry. It has no state until [`Command::Found`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Machine {
    /// The agreed state; `None` before the founding.
    pub state: Option<ClusterState>,
}

/// One entry of the control plane's log. New kinds are added at the end (R22 holds for these formats too).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Found the cluster. The first entry; refused on a founded cluster.
    Found {
        /// The cluster's id.
        cluster: ClusterId,
        /// The number of partitions.
        ring_size: RingSize,
        /// The target replica count of the table.
        width: u8,
        /// The founder (`id` 0).
        founder: Member,
        /// PEM certificate of the founder's authority.
        authority: String,
        /// PEM key of that authority. Empty from state level 6 on.
        authority_key: String,
        /// The initial level of the state.
        #[serde(default = "first_level")]
        level: u32,
    },
    /// Add a join token that is valid until `expires_ms`, and remove those that expired before `now_ms`.
    IssueToken {
        /// SHA-256 of the secret.
        token: Digest,
        /// The proposer's clock, milliseconds since 1970.
        now_ms: u64,
        /// The expiry, by the same clock.
        expires_ms: u64,
        /// The number of nodes that it admits. State level 6.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uses: Option<u32>,
    },
    /// Admit a node as `joining`; its id is this entry's index. Refused if the name is taken, or the token is unknown,
    /// used up or expired. An entry with the uid and the key of a node that is still joining returns the id that the
    /// node already has.
    Admit {
        /// The node; `id` and `status` are ignored.
        member: Member,
        /// SHA-256 of the token's secret.
        token: Digest,
        /// The proposer's clock, milliseconds since 1970.
        now_ms: u64,
    },
    /// `joining` -> `member`: the node has caught up with the log.
    Joined {
        /// The node.
        node: NodeId,
    },
    /// `member` -> `leaving`. Refused for the last member.
    Leave {
        /// The node.
        node: NodeId,
    },
    /// `leaving` or `joining` -> `removed`: the node is in no replica set and in no pending one.
    Removed {
        /// The node.
        node: NodeId,
    },
    /// Aim the ring at a new table. Refused if the ring's epoch is no longer `base`. A partition whose pending set is
    /// the new one keeps its transfer; one whose present set is the new one has its transfer cancelled; any other
    /// gets a new transfer with this entry's index as id.
    Rebalance {
        /// The ring's epoch that the table was computed from.
        base: u64,
        /// The ordered replica set of every partition.
        table: Vec<Vec<NodeId>>,
    },
    /// Complete transfers: pending sets become the replica sets. A transfer that is not, or no longer, pending is
    /// refused alone; the others are carried out.
    Flip {
        /// The partition and the transfer of each.
        transfers: Vec<(PartitionId, TransferId)>,
    },
    /// Cancel a transfer and start it again under a new id, this entry's index. The receiver drops its stage, and the
    /// seal is lifted (R1).
    Cancel {
        /// The partition.
        partition: PartitionId,
        /// The transfer.
        transfer: TransferId,
    },
    /// Deploy the first or a further release of a module.
    Deploy {
        /// The module's name.
        name: String,
        /// The number of replicas. For `n`, `r`, `w`, `storage` and `config`, `None` keeps the setting of a
        /// deployed module.
        n: Option<u8>,
        /// The read quorum.
        r: Option<u8>,
        /// The write quorum.
        w: Option<u8>,
        /// Whether fallbacks may acknowledge writes; `None` keeps the setting, which is false for a new module. State
        /// level 8.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sloppy: Option<bool>,
        /// The engine of its host storage.
        storage: Option<StorageKind>,
        /// The CBOR map for `init`.
        config: Option<Vec<u8>>,
        /// The release. Its `version` is ignored: the entry assigns the last version plus 1.
        release: Release,
        /// The version that the proposer saw running, 0 for none. Refused if it has changed since.
        base_version: u64,
    },
    /// Run an earlier release again, as a new version.
    Rollback {
        /// The module's name.
        name: String,
        /// The release that the proposer saw running. State level 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<ModuleBase>,
        /// The version of the earlier release; the previous one if `None`. State level 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
    },
    /// Remove a module and its items.
    Undeploy {
        /// The module's name.
        name: String,
        /// The release that the proposer saw running. State level 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<ModuleBase>,
    },
    /// Record the new addresses of a member.
    Moved {
        /// The member.
        node: NodeId,
        /// The UDP address of its QUIC endpoint.
        listen: String,
        /// The address reserved for HTTP.
        http: String,
    },
    /// Stage a change. Refused if it is not possible after those that are staged.
    Stage {
        /// The change.
        change: Change,
    },
    /// Drop every staged change. Nodes that joined with `--stage` continue to wait.
    ClearStaged,
    /// Carry out the staged changes, as one rebalancing. Refused if the staged changes or the ring differ from those
    /// that the table was computed from.
    Commit {
        /// The `stage_version` of the plan.
        stage: u64,
        /// The ring's epoch of the plan.
        base: u64,
        /// The table of the plan.
        table: Vec<Vec<NodeId>>,
    },
    /// Carry out one change that was not staged.
    Change {
        /// The change.
        change: Change,
        /// The ring's epoch that the table was computed from.
        base: u64,
        /// The resulting table.
        table: Vec<Vec<NodeId>>,
        /// Whether the node that goes was marked as down when the change was planned. State level 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        down: Option<bool>,
    },
    /// `member` -> `down`: an operator marks the node as down. It keeps its share.
    Down {
        /// The member.
        node: NodeId,
    },
    /// `down` -> `member`: the node is back.
    Up {
        /// The member.
        node: NodeId,
    },
    /// Record the new zone or weight of a member; `None` keeps the present one.
    Placed {
        /// The member.
        node: NodeId,
        /// The failure domain.
        zone: Option<String>,
        /// Share of the ring relative to others, at least 1.
        weight: Option<u32>,
    },
    /// Acknowledge the losses up to an index, which are forgotten.
    Acknowledge {
        /// The log index.
        up_to: u64,
    },
    /// Change limits on handoffs. State level 2.
    SetHandoff {
        /// The node; `None` for every node without a setting for it alone.
        node: Option<NodeId>,
        /// The changes, carried out all or not at all.
        changes: Vec<HandoffChange>,
    },
    /// Report that a successor, or a replica that stays in a smaller set, has all items of modules with several replicas, so
    /// that their partitions may flip. State level 6.
    Arrived {
        /// The node.
        node: NodeId,
        /// The partition, the transfer and the module of each.
        arrivals: Vec<(PartitionId, TransferId, ModuleUid)>,
    },
    /// Raise the state's level. Refused unless `known` contains all members that are not removed.
    Raise {
        /// The new level.
        level: u32,
        /// The members that are known to support it.
        known: Vec<NodeId>,
    },
    /// Record that a node has lost items of these partitions in a restart, or keeps items aside that the present
    /// owner does not have. State level 3.
    Lost {
        /// The node.
        node: NodeId,
        /// The partitions.
        partitions: Vec<PartitionId>,
    },
}

/// The outcome of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Carried out.
    Done,
    /// The node is admitted under this id, by this entry or an earlier one.
    Admitted(NodeId),
    /// The module runs this version.
    Deployed(ModuleUid, u64),
    /// The transfers of a `Flip` that were carried out, with their partitions, as one rebalancing gives all of its
    /// transfers one id.
    Flipped(Vec<(PartitionId, TransferId)>),
    /// Refused; the state has not changed.
    Refused(Refusal),
}

/// The reason why an entry was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// `Found` on a founded cluster, or another command before it.
    #[error("the cluster is founded already, or not yet")]
    Founding,
    /// The member does not exist, or is removed.
    #[error("no member {0}")]
    NotMember(String),
    /// A member has that name.
    #[error(
        "a member named {0} exists; a node that lost its data directory needs a new name, or remove the old one first"
    )]
    NameTaken(String),
    /// The join token is unknown, used up or expired.
    #[error(
        "the join token is not valid, is used up or has expired: print a new one with `annulus token`, which admits one node, or with `--uses N` more"
    )]
    BadToken,
    /// The member's status does not allow it.
    #[error("{node} is {status}")]
    Status {
        /// The member.
        node: String,
        /// Its status.
        status: String,
    },
    /// No member would be left.
    #[error("the last member cannot leave")]
    LastMember,
    /// The ring has changed since the table was computed.
    #[error("the ring has changed since the table was computed")]
    RingChanged,
    /// The table has too many or too few partitions, or a set contains a node twice or a node that is not a member.
    #[error("not a table of this ring: {0}")]
    BadTable(String),
    /// The transfer is not, or no longer, pending.
    #[error("transfer {0} is not pending")]
    NotPending(TransferId),
    /// The node still holds partitions.
    #[error("{0} still holds partitions")]
    Holding(String),
    /// The module is not deployed.
    #[error("no module named {0} is deployed")]
    NoModule(String),
    /// Another deploy came first.
    #[error("another deploy of {0} came first; look at `annulus modules` and deploy again")]
    DeployRaced(String),
    /// The module has no release to return to.
    #[error("{0} has no release to go back to")]
    NoPrevious(String),
    /// A setting is out of range.
    #[error("{0}")]
    BadSetting(String),
    /// No change is staged that could be committed.
    #[error("nothing is staged: run join, leave, replace or remove with --stage first")]
    NothingStaged,
    /// The plan differs from the one that the operator wants to commit.
    #[error("the plan has changed since it was shown: run `annulus plan` again, then commit")]
    PlanChanged,
    /// The node joined to wait for a plan.
    #[error("{0} joined with --stage: it waits for a plan that includes it")]
    Waits(String),
    /// The change contradicts those that are staged.
    #[error("the change contradicts the staged changes: {0}; `annulus clear` drops those")]
    Conflict(Box<Refusal>),
    /// A node that holds partitions cannot replace another node.
    #[error("{0} holds partitions itself; only a node that holds nothing can replace another")]
    NotEmpty(String),
    /// The command needs a level that the cluster does not use yet.
    #[error("this needs state level {needs} and the cluster is at {level}: {}", who_holds_back(.behind))]
    Level {
        /// The level of the command.
        needs: u32,
        /// The level of the cluster.
        level: u32,
        /// The members that do not support the level, or are not known to, each with the reason.
        behind: Vec<String>,
    },
    /// The level cannot, or can no longer, be raised.
    #[error(
        "the state's level cannot become {0}: a new member may not support it, or the state has that level already"
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
    /// Another operator has changed the module.
    #[error("{0} has changed since the command was made; look at `annulus modules` and repeat the command")]
    ModuleChanged(String),
}

/// Return a message about the members that prevent a higher level.
fn who_holds_back(behind: &[String]) -> String {
    match behind {
        [] => "it is raised as soon as all members are known to support it; try again".to_owned(),
        behind => format!("start a newer build of {} first", behind.join(", ")),
    }
}

#[cfg(test)]
mod tests;
