//! What the control plane's nodes say to each other, besides Raft. All CBOR; a new variant goes
//! to the end of its enum.

use std::net::SocketAddr;

use annulus_core::ids::{ClusterId, NodeId};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{ClusterState, Lineage, Member, Outcome, Refusal};
use annulus_core::version::Speaks;
use serde::{Deserialize, Serialize};

use super::addresses::{Sighting, Stamp};
pub use annulus_transport::kind::{ADDRESSES, ANNOUNCE, FETCH_STATE};

/// One of Raft's requests in a lineage after the first: `OF_LINEAGE`. The answer is as it is
/// without it. In the first lineage nothing is wrapped, so that nodes from before lineages are
/// understood.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfLineage {
    /// Whose Raft speaks: another one's must not hear it.
    pub lineage: Lineage,
    /// Raft's kind of request.
    pub kind: u8,
    /// The request.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

/// Answer to a forwarded command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ProposeReply {
    /// Committed and applied under this index.
    Applied {
        /// Index of the entry.
        index: u64,
        /// What it did.
        outcome: Outcome,
    },
    /// Nothing happened; that one may be the leader.
    NotLeader {
        /// Whom this node takes for the leader.
        leader: Option<NodeId>,
    },
    /// Nothing happened: the leader has no majority behind it.
    NoQuorum,
    /// It may be applied, now or later.
    Unknown,
}

/// A node says where it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Announce {
    /// Its endpoint.
    pub listen: SocketAddr,
    /// When it says so; absent from builds that do not tell it on.
    #[serde(default)]
    pub stamp: Option<Stamp>,
}

/// Where all nodes are, as far as one knows; answered in kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// Index of the state that the sender has.
    pub index: u64,
    /// What nodes have said of themselves, the sender among them.
    pub known: Vec<Sighting>,
}

/// What a peer knows of the node that announced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnnounceReply {
    /// A member.
    Member,
    /// It was removed from the cluster.
    Removed,
    /// Nothing (yet).
    Unknown,
}

/// Asks a peer for a committed state, if it has a newer one (R2).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FetchState {
    /// Index that the asking node has.
    pub newer_than: u64,
}

/// The state, if it is newer.
pub type FetchStateReply = Option<Box<ClusterState>>;

/// A node asks to be admitted: the header of a join stream.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The cluster that the token is of.
    pub cluster: ClusterId,
    /// The node; its id and status mean nothing yet.
    pub member: Member,
    /// What the certificate is to be made for.
    #[serde(with = "serde_bytes")]
    pub public_key: Vec<u8>,
    /// The token's secret.
    #[serde(with = "serde_bytes")]
    pub secret: Vec<u8>,
    /// The only ring's size that the node was told to be part of.
    #[serde(default)]
    pub ring_size: Option<RingSize>,
    /// What its build speaks. The first build says nothing.
    #[serde(default)]
    pub speaks: Speaks,
}

/// Answer to [`JoinRequest`], in frames of at most [`JOIN_FRAME`] bytes.
#[derive(Clone, Serialize, Deserialize)]
pub enum JoinReply {
    /// Welcome.
    Admitted(Box<JoinAnswer>),
    /// No, and nothing was changed.
    Refused(Refusal),
    /// Nothing was changed: the cluster cannot decide at the moment.
    Unavailable(String),
    /// The cluster may have admitted the node; asking again tells.
    Unknown,
}

/// What an admitted node needs.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Its id.
    pub node: NodeId,
    /// PEM chain for its public key.
    pub certificate: String,
    /// The cluster, at or after the entry that admitted the node.
    pub state: ClusterState,
}

/// Largest part of a join's answer: a state may be larger than a frame.
pub const JOIN_FRAME: usize = 512 * 1024;

/// Largest answer to a join that a node reads: many times the largest state there is.
pub const JOIN_LIMIT: usize = 64 * 1024 * 1024;
