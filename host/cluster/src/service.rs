//! Incoming traffic of the control plane: requests of peers, join streams, datagrams and connections.

use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid, Start};
use annulus_core::state::{Command, Lineage, Outcome, Refusal, Standing};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::Cluster;
use super::evidence::Starting;
use super::join::answer_join;
use super::liveness::Told;
use super::messages::{
    Announce, AnnounceReply, FetchState, FetchStateReply, JoinReply, OfLineage, ProposeReply,
};
use super::outsider::weigh;
use super::raft::{RaftTypes, Vote};
use super::recover;
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
        if !self.view().has(from) {
            return;
        }
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
    #[error("it has left the cluster or was removed from it")]
    Removed,
    #[error("it is not a member of the cluster")]
    Unknown,
    #[error("it sends messages in the name of node {0}")]
    Impostor(NodeId),
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
        // The member table decides what is served (R20). A node that is not a member may ask whether it is one, when
        // it announces itself and when it starts.
        let mut standing = self.view().state.standing(uid);
        match kind {
            kind::ANNOUNCE => {
                let Announce { listen, stamp } = decode(payload)?;
                if matches!(standing, Standing::Member(_)) {
                    self.inner.exchange.announced(uid, listen, stamp);
                }
                return reply(&AnnounceReply::of(&self.view().state, uid));
            }
            kind::STARTS => {
                let starting: Starting = decode(payload)?;
                // Only a member's start is recorded. A node that this one does not know yet asks again.
                if standing == Standing::Unknown && !starting.only_asked {
                    return Err(Unanswered::Unknown);
                }
                let notes = matches!(standing, Standing::Member(_));
                return reply(&self.inner.start_check.evidence(uid, starting, notes));
            }
            // The sender may be a leader that was admitted after this node's last update.
            kind::RAFT_APPEND
            | kind::RAFT_VOTE
            | kind::RAFT_SNAPSHOT
            | kind::OF_LINEAGE
            | kind::RECOVERED => {}
            _ => standing = self.gets_to_know(uid, deadline).await,
        }
        match standing {
            Standing::Removed => return Err(Unanswered::Removed),
            // A recovery may not know of a node that joined shortly before. It must hear that it is outside.
            Standing::Unknown if kind == kind::FETCH_STATE && self.view().state.lineage.number > 0 => {
                let state = self.view().state.for_outsiders();
                return reply(&Some(Box::new(state)));
            }
            Standing::Unknown if !is_of_raft(kind) => return Err(Unanswered::Unknown),
            Standing::Unknown | Standing::Member(_) => {}
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
            kind::RECOVERED => {
                let over = self.inner.lineages.come_over(uid, decode(payload)?, deadline).await;
                if over { reply(&()) } else { Err(Unanswered::NotOver) }
            }
            kind::PROPOSE => {
                let command: Command = decode(payload)?;
                self.inner.versions.check_known(&command)?;
                if let Standing::Member(node) = standing
                    && !self.view().state.may_propose(node, &command)
                {
                    tracing::warn!(peer = %uid, %node, "a command that this member may not propose");
                    let why = format!(
                        "node {node} may not propose this: only the leader, or the node that it is about"
                    );
                    let outcome = Outcome::Refused(Refusal::BadSetting(why));
                    return reply(&ProposeReply::Applied { index: self.view().index(), outcome });
                }
                reply(&self.inner.proposer.propose_here(command, deadline).await)
            }
            kind::AUTHORITY => {
                let Standing::Member(from) = standing else { return Err(Unanswered::Unknown) };
                reply(&self.inner.authorities.answer(from, decode(payload)?, deadline).await)
            }
            kind::LEADS => {
                let () = decode(payload)?;
                reply(&self.inner.group.leads_a_majority_within(recover::LED))
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
                self.check_sender(uid, append.vote)?;
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
                self.check_sender(uid, request.vote)?;
                if !self.inner.participation.may_vote_for(lineage, request.last_log_id) {
                    return Err(Unanswered::NotYet);
                }
                reply(&raft.vote(weigh(self.me(), raft, request).await).await)
            }
            kind::RAFT_SNAPSHOT => {
                let snapshot: InstallSnapshotRequest<RaftTypes> = decode(payload)?;
                self.check_sender(uid, snapshot.vote)?;
                reply(&raft.install_snapshot(snapshot).await)
            }
            _ => Err(Unanswered::Kind),
        }
    }

    /// Check that a Raft message comes from the node in whose name it is: leaders and candidates send their own vote.
    fn check_sender(&self, uid: NodeUid, vote: Vote) -> Result<(), Unanswered> {
        let (named, state) = (NodeId(vote.leader_id.node_id), &self.view().state);
        // A node that follows a leader, or leads, needs no stranger.
        let is_led = || self.inner.group.heard_from_leader_within(LED);
        if state.speaks_for(uid, named) && (state.standing(uid) != Standing::Unknown || !is_led()) {
            return Ok(());
        }
        Err(Unanswered::Impostor(named))
    }

    /// Return the standing of a node. If this node does not know it, wait a while for the entry that admits it.
    pub(super) async fn gets_to_know(&self, uid: NodeUid, deadline: Instant) -> Standing {
        let standing = self.view().state.standing(uid);
        if standing != Standing::Unknown {
            return standing;
        }
        let patience = deadline.min(Instant::now() + INTRODUCTION);
        self.inner.fetcher.learn_news(patience).await;
        let mut views = self.watch();
        let known = views.wait_for(|view| view.state.standing(uid) != Standing::Unknown);
        match timeout_at(patience, known).await {
            Ok(Ok(view)) => view.state.standing(uid),
            _ => Standing::Unknown,
        }
    }

    /// Return true if a node is a member. If this node does not know it, wait a while for the entry that admits it.
    pub fn serves_node(&self, uid: NodeUid, deadline: Instant) -> BoxFuture<'_, bool> {
        Box::pin(async move { matches!(self.gets_to_know(uid, deadline).await, Standing::Member(_)) })
    }
}

/// Time since a leader's last message for which a node follows it. Shorter than an election.
const LED: Duration = Duration::from_secs(1);

/// Longest wait for the entry that admits a node which has sent a request. A request is rarely faster than the log.
const INTRODUCTION: Duration = Duration::from_secs(1);

/// Return true if the kind is one of Raft's, or announces a lineage.
fn is_of_raft(kind: u8) -> bool {
    matches!(
        kind,
        kind::RAFT_APPEND | kind::RAFT_VOTE | kind::RAFT_SNAPSHOT | kind::OF_LINEAGE | kind::RECOVERED
    )
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Unanswered> {
    Ok(codec::decode(payload)?)
}

fn reply<T: Serialize>(answer: &T) -> Result<Vec<u8>, Unanswered> {
    Ok(codec::encode(answer)?)
}
