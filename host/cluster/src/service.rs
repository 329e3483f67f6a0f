//! What a node's control plane does for its peers, and for nodes that want to join.

use std::sync::Arc;

use annulus_core::ids::{NodeUid, Start};
use annulus_core::state::{Command, Lineage};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::join::answer_join;
use super::liveness::Told;
use super::messages::{
    ADDRESSES, ANNOUNCE, Announce, AnnounceReply, FETCH_STATE, FetchState, FetchStateReply, JoinReply,
    OfLineage,
};
use super::outsider::weigh;
use super::raft::RaftTypes;
use super::versions::TooNew;
use annulus_core::codec;
use annulus_transport::{BulkStream, Lane, PeerIdentity, Request, Service, kind};

/// The control lane and the join streams of a node. Made before the transport, which needs it;
/// connected to the [`Cluster`], which needs the transport. A request that comes before that is not
/// answered: the peer is told so at once and tries again. A join is answered `Unavailable`.
#[derive(Default)]
pub struct ClusterService {
    cluster: ArcSwapOption<Cluster>,
}

impl ClusterService {
    /// Answers from now on.
    pub fn connect(&self, cluster: Cluster) {
        self.cluster.store(Some(Arc::new(cluster)));
    }

    /// Answers nobody any more.
    pub fn disconnect(&self) {
        self.cluster.store(None);
    }

    /// Has the control plane found this disk to be the node's newest, and taken part since?
    pub fn takes_part(&self) -> bool {
        self.cluster().is_some_and(|cluster| cluster.takes_part())
    }

    /// A peer's hello names a newer lineage.
    pub fn newer_lineage(&self, peer: NodeUid, lineage: Lineage) {
        if let Some(cluster) = self.cluster() {
            cluster.inner.lineages.hear_of(peer, lineage);
        }
    }

    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.load_full()
    }
}

impl Service for ClusterService {
    fn request(&self, request: Request) {
        let (Some(cluster), PeerIdentity::Node { uid, .. }, Lane::Control) =
            (self.cluster(), &request.from, request.lane)
        else {
            return;
        };
        let uid = *uid;
        let runtime = cluster.inner.tasks.runtime().clone();
        annulus_ground::spawn_on(&runtime, async move {
            let Request { kind, payload, deadline, responder, .. } = request;
            match cluster.answer(uid, kind, &payload, deadline).await {
                Ok(answer) => responder.send(answer.into()),
                // Raft says it again several times a second.
                Err(error @ (Unanswered::OtherLineage | Unanswered::NotYet)) => {
                    tracing::debug!(peer = %uid, kind, %error, "a peer's request is not answered");
                }
                Err(error) => tracing::warn!(peer = %uid, kind, %error, "a peer's request is not answered"),
            }
        });
    }

    fn outdated(&self, peer: NodeUid, start: Start) -> Option<String> {
        self.cluster()?.inner.start_check.outdated(peer, start)
    }

    fn datagram(&self, from: NodeUid, bytes: Bytes) {
        if let Some(cluster) = self.cluster() {
            cluster.liveness().tell(Told::Datagram { from, bytes });
        }
    }

    fn outside(&self) {
        if let Some(cluster) = self.cluster() {
            cluster.inner.lineages.refused();
        }
    }

    fn rival(&self, peer: NodeUid) {
        if let Some(cluster) = self.cluster() {
            cluster.inner.rivals.note(peer);
        }
    }

    fn connected(&self, peer: NodeUid) {
        if let Some(cluster) = self.cluster() {
            cluster.liveness().tell(Told::Connected(peer));
            cluster.inner.exchange.connected(peer);
        }
    }

    fn bulk(&self, _: PeerIdentity, kind: u8, header: Bytes, stream: BulkStream) {
        if kind != kind::BULK_JOIN {
            return;
        }
        let Some(cluster) = self.cluster() else {
            // A dropped stream would leave it open whether the node was admitted.
            annulus_ground::spawn(async move {
                let why = JoinReply::Unavailable("the member is starting or stopping".to_owned());
                if let Err(error) = answer_join(stream, &why).await {
                    tracing::debug!(%error, "a joining node came too early and was not told so");
                }
            });
            return;
        };
        let runtime = cluster.inner.tasks.runtime().clone();
        annulus_ground::spawn_on(&runtime, async move {
            if let Err(error) = cluster.inner.admission.serve_join(&header, stream).await {
                tracing::warn!(%error, "a joining node got no answer");
            }
        });
    }
}

/// Why a peer's request gets no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    #[error("it was removed from the cluster")]
    Removed,
    #[error("it is of another lineage of the cluster")]
    OtherLineage,
    #[error("this node has not taken over the newer lineage in time")]
    NotOver,
    #[error(transparent)]
    TooNew(#[from] TooNew),
    #[error("this node does not know yet whether its disk is its newest")]
    NotYet,
    #[error("unknown kind of request")]
    Kind,
}

impl Cluster {
    /// Answers a peer's request of the control lane.
    pub(super) async fn answer(
        &self,
        uid: NodeUid,
        kind: u8,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, Unanswered> {
        let standing = AnnounceReply::of(&self.view().state, uid);
        if kind == ANNOUNCE {
            let Announce { listen, stamp } = codec::decode(payload)?;
            if standing == AnnounceReply::Member {
                self.inner.exchange.announced(uid, listen, stamp);
            }
            return reply(&standing);
        }
        // A removed node is told so when it announces itself and when it starts, and has no other say (R20). One
        // that this node does not know yet may be a leader that joined after this node's last news.
        if standing == AnnounceReply::Removed && kind != kind::STARTS {
            return Err(Unanswered::Removed);
        }
        match kind {
            kind::RAFT_APPEND | kind::RAFT_VOTE | kind::RAFT_SNAPSHOT => {
                self.answer_raft(uid, Lineage::default(), kind, payload).await
            }
            kind::OF_LINEAGE => {
                let OfLineage { lineage, kind, payload } = decode(payload)?;
                self.answer_raft(uid, lineage, kind, &payload).await
            }
            ADDRESSES => reply(&self.inner.exchange.exchange(uid, decode(payload)?)),
            kind::STARTS => reply(&self.inner.start_check.evidence(uid, decode(payload)?)),
            kind::RECOVERED => {
                let over = self.inner.lineages.come_over(uid, decode(payload)?, deadline).await;
                if over { reply(&()) } else { Err(Unanswered::NotOver) }
            }
            kind::PROPOSE => {
                let command: Command = decode(payload)?;
                self.inner.versions.check_known(&command)?;
                reply(&self.inner.proposer.propose_here(command, deadline).await)
            }
            FETCH_STATE => {
                let FetchState { newer_than } = decode(payload)?;
                let view = self.view();
                if view.index() <= newer_than {
                    return reply(&FetchStateReply::None);
                }
                Ok(self.inner.encoded.of(view).await?.to_vec())
            }
            _ => Err(Unanswered::Kind),
        }
    }

    /// What another node's Raft says is for the Raft of the same lineage only.
    async fn answer_raft(
        &self,
        uid: NodeUid,
        lineage: Lineage,
        kind: u8,
        payload: &[u8],
    ) -> Result<Vec<u8>, Unanswered> {
        let running = self.inner.group.running();
        if lineage != running.lineage {
            if lineage > running.lineage {
                self.inner.lineages.hear_of(uid, lineage);
            } else {
                self.inner.lineages.tell(uid);
            }
            return Err(Unanswered::OtherLineage);
        }
        if !self.takes_part() {
            return Err(Unanswered::NotYet);
        }
        let raft = &running.raft;
        match kind {
            kind::RAFT_APPEND => {
                let append: AppendEntriesRequest<RaftTypes> = decode(payload)?;
                self.inner.versions.check_entries(&append.entries)?;
                let answer = raft.append_entries(append).await;
                if answer.as_ref().is_ok_and(|answer| !matches!(answer, AppendEntriesResponse::HigherVote(_)))
                {
                    self.inner.group.contact().heard_from_leader();
                }
                reply(&answer)
            }
            kind::RAFT_VOTE => {
                let request: VoteRequest<u64> = decode(payload)?;
                if !self.inner.participation.may_vote_for(lineage, request.last_log_id) {
                    return Err(Unanswered::NotYet);
                }
                reply(&raft.vote(weigh(self.me(), raft, request).await).await)
            }
            kind::RAFT_SNAPSHOT => reply(&raft.install_snapshot(decode(payload)?).await),
            _ => Err(Unanswered::Kind),
        }
    }
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Unanswered> {
    Ok(codec::decode(payload)?)
}

fn reply<T: Serialize>(answer: &T) -> Result<Vec<u8>, Unanswered> {
    Ok(codec::encode(answer)?)
}
