//! Messages of the control plane other than Raft's. All are CBOR; a new variant goes to the end of its enum.

use std::net::SocketAddr;

use annulus_core::ids::{ClusterId, NodeId, NodeUid};
use annulus_core::keyspace::RingSize;
use annulus_core::state::{ClusterState, Lineage, Member, Outcome, Refusal};
use annulus_core::version::Speaks;
use annulus_data_dir::AuthorityKey;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::addresses::{Sighting, Stamp};
pub use annulus_transport::kind::{ADDRESSES, ANNOUNCE, FETCH_STATE};

/// Envelope of Raft's requests in any lineage but the first: `OF_LINEAGE`. Replies have no envelope. In the
/// first lineage requests have none either, so that builds from before lineages can decode them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfLineage {
    /// Lineage of the sender's Raft; a Raft of another lineage must not see the request.
    pub lineage: Lineage,
    /// Kind of the request.
    pub kind: u8,
    /// The encoded request.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

/// Reply to a forwarded command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ProposeReply {
    /// Committed and applied.
    Applied {
        /// Index of the entry.
        index: u64,
        /// Its outcome.
        outcome: Outcome,
    },
    /// Nothing was changed.
    NotLeader {
        /// The leader, as far as the replying node knows.
        leader: Option<NodeId>,
    },
    /// Nothing was changed, because the leader has no majority.
    NoQuorum,
    /// The command may be applied, now or later.
    Unknown,
}

/// Announcement of a node's own address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Announce {
    /// The address.
    pub listen: SocketAddr,
    /// Orders the announcements of a node; absent from builds that do not pass addresses on.
    #[serde(default)]
    pub stamp: Option<Stamp>,
}

/// Addresses that the sender knows. The reply is a message of the same type.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// Index of the sender's state.
    pub index: u64,
    /// Announced addresses, the sender's among them.
    pub known: Vec<Sighting>,
}

/// A peer's knowledge of the node that announced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnnounceReply {
    /// It is a member.
    Member,
    /// It was removed from the cluster.
    Removed,
    /// The peer does not know the node, or does not know it yet.
    Unknown,
}

impl AnnounceReply {
    /// Look up a node in a state.
    pub fn of(state: &ClusterState, uid: NodeUid) -> Self {
        match state.member_by_uid(uid) {
            None => Self::Unknown,
            Some(member) if member.is_live() => Self::Member,
            Some(_) => Self::Removed,
        }
    }
}

/// Request for a peer's committed state, if it is newer (R2).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FetchState {
    /// Index of the requesting node's state.
    pub newer_than: u64,
}

/// Reply to [`FetchState`]: the state, if it is newer.
pub type FetchStateReply = Option<Box<ClusterState>>;

/// The subject of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// The node of a data directory.
    Node(NodeUid),
    /// An operator.
    Operator,
}

/// Message about the key of the cluster's authority, from a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AuthorityMessage {
    /// The receiver is asked whether it has the key.
    Has,
    /// The receiver is asked to sign a public key.
    Sign {
        /// The subject of the certificate.
        subject: Subject,
        /// The public key.
        #[serde(with = "serde_bytes")]
        public_key: Vec<u8>,
        /// An entry after which the member table has the subject.
        index: u64,
    },
    /// The sender votes, and asks for the key.
    Give,
    /// The receiver is about to vote, and gets the key.
    Take(AuthorityKey),
}

/// Reply to an [`AuthorityMessage`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AuthorityReply {
    /// The key is stored.
    Done,
    /// Whether the node has the key.
    Has(bool),
    /// The certificate chain in PEM.
    Signed(String),
    /// The key.
    Key(AuthorityKey),
    /// Nothing was done, for this reason.
    Refused(String),
}

/// Request for admission: the header of a join stream.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Cluster of the token.
    pub cluster: ClusterId,
    /// The node. Its id and status are ignored.
    pub member: Member,
    /// Public key for the certificate.
    #[serde(with = "serde_bytes")]
    pub public_key: Vec<u8>,
    /// The token's secret.
    #[serde(with = "serde_bytes")]
    pub secret: Vec<u8>,
    /// Ring size that the node was started with. It does not join a ring of another size.
    #[serde(default)]
    pub ring_size: Option<RingSize>,
    /// Versions that its build speaks. Absent from the first build.
    #[serde(default)]
    pub speaks: Speaks,
    /// Public key for the credential of the node's operator: a node that has joined may be unable to reach a voter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_key: Option<ByteBuf>,
}

/// Reply to [`JoinRequest`], in frames of at most [`JOIN_FRAME`] bytes.
#[derive(Clone, Serialize, Deserialize)]
pub enum JoinReply {
    /// The node is admitted.
    Admitted(Box<JoinAnswer>),
    /// The node is refused. Nothing was changed.
    Refused(Refusal),
    /// The cluster cannot decide at the moment. Nothing was changed.
    Unavailable(String),
    /// The cluster may have admitted the node. Repeating the request determines the outcome.
    Unknown,
}

/// Data for an admitted node.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Its id in the cluster.
    pub node: NodeId,
    /// PEM certificate chain for its public key.
    pub certificate: String,
    /// The committed state, at or after the entry that admitted the node.
    pub state: ClusterState,
    /// PEM certificate chain of the node's operator, if it has asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
}

/// Largest part of a join's reply: a state may be larger than a frame.
pub const JOIN_FRAME: usize = 512 * 1024;

/// Largest reply to a join that a node reads: many times the largest state.
pub const JOIN_LIMIT: usize = 64 * 1024 * 1024;
