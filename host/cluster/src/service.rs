//! Incoming traffic of the control plane: requests of peers, join streams, datagrams and connections.

use annulus_core::ids::{NodeUid, Start};
use annulus_core::state::{Command, Lineage};
use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::Cluster;
use super::join::answer_join;
use super::liveness::Told;
use super::messages::{Announce, AnnounceReply, FetchState, FetchStateReply, JoinReply, OfLineage};
use super::outsider::weigh;
use super::raft::RaftTypes;
use super::versions::TooNew;
use annulus_core::codec;
use annulus_transport::{BulkStream, Lane, PeerIdentity, Request, kind};

/// Incoming traffic. None of these functions blocks; work that waits is spawned.
impl Cluster {
    /// Answer a node's request on the control lane. If there is no answer, the caller gets no response.
    pub fn serve(&self, request: Request) {
        let (PeerIdentity::Node { uid, .. }, Lane::Control) = (&request.from, request.lane) else { return };
        let (uid, cluster) = (*uid, self.clone());
        // The task ends at the request's deadline or when the control plane stops.
        self.inner.tasks.spawn(async move {
            let Request { kind, payload, deadline, responder, .. } = request;
            match cluster.answer(uid, kind, &payload, deadline).await {
                Ok(answer) => responder.send(answer.into()),
                // Raft repeats its requests several times a second.
                Err(error @ (Unanswered::OtherLineage | Unanswered::NotYet)) => {
                    tracing::debug!(peer = %uid, kind, %error, "a peer's request is not answered");
                }
                Err(error) => tracing::warn!(peer = %uid, kind, %error, "a peer's request is not answered"),
            }
        });
    }

    /// Answer a node that asks to join.
    pub fn serve_join_stream(&self, header: Bytes, stream: BulkStream) {
        let cluster = self.clone();
        // The task ends at the proposal's deadline or when the control plane stops.
        self.inner.tasks.spawn(async move {
            if let Err(error) = cluster.inner.admission.serve_join(&header, stream).await {
                tracing::warn!(%error, "a joining node got no answer");
            }
        });
    }

    /// Pass a datagram to the failure detector.
    pub fn on_datagram(&self, from: NodeUid, bytes: Bytes) {
        self.liveness().tell(Told::Datagram { from, bytes });
    }

    /// Record a new connection to a node.
    pub fn on_connected(&self, peer: NodeUid) {
        self.liveness().tell(Told::Connected(peer));
        self.inner.exchange.connected(peer);
    }

    /// Record that a peer's hello names a newer lineage.
    pub fn on_newer_lineage(&self, peer: NodeUid, lineage: Lineage) {
        self.inner.lineages.hear_of(peer, lineage);
    }

    /// Record that a newer lineage of the cluster does not include this node.
    pub fn on_outside(&self) {
        self.inner.lineages.refused();
    }

    /// Record a peer with which this node has no common history.
    pub fn on_rival(&self, peer: NodeUid) {
        self.inner.rivals.note(peer);
    }

    /// Return the reason to refuse a process of a peer, if a later start of the same node had the newer disk.
    pub fn why_outdated(&self, peer: NodeUid, start: Start) -> Option<String> {
        self.inner.start_check.outdated(peer, start)
    }
}

/// Reply to a joining node that this member is starting or stopping. If the stream were dropped, the node
/// would not know whether it was admitted.
pub async fn turn_joiner_away(stream: BulkStream) {
    let why = JoinReply::Unavailable("the member is starting or stopping".to_owned());
    if let Err(error) = answer_join(stream, &why).await {
        tracing::debug!(%error, "a joining node came too early, and the answer could not be sent");
    }
}

/// The reason for which a peer's request gets no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    #[error("it was removed from the cluster")]
    Removed,
    #[error("it is of another lineage of the cluster")]
    OtherLineage,
    #[error("this node has not adopted the newer lineage in time")]
    NotOver,
    #[error(transparent)]
    TooNew(#[from] TooNew),
    #[error("this node does not know yet whether its disk is its newest")]
    NotYet,
    #[error("unknown kind of request")]
    Kind,
}

impl Cluster {
    /// Answer a peer's request on the control lane.
    pub(super) async fn answer(
        &self,
        uid: NodeUid,
        kind: u8,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, Unanswered> {
        let standing = AnnounceReply::of(&self.view().state, uid);
        if kind == kind::ANNOUNCE {
            let Announce { listen, stamp } = codec::decode(payload)?;
            if standing == AnnounceReply::Member {
                self.inner.exchange.announced(uid, listen, stamp);
            }
            return reply(&standing);
        }
        // A removed node learns of its removal when it announces itself and when it starts. Its other
        // requests are ignored (R20). An unknown node may be a leader that joined after this node's last
        // update.
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
            kind::ADDRESSES => reply(&self.inner.exchange.exchange(uid, decode(payload)?)),
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
            kind::FETCH_STATE => {
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

    /// Pass a Raft message on if it belongs to the lineage of this node's Raft.
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
