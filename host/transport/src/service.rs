//! What the rest of the node sees of a request from elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use annulus_core::ids::{BootId, NodeUid, Start};
use annulus_core::state::Lineage;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::bulk::BulkStream;
use super::frame::FrameType;
use super::lane::Lanes;
use super::limits::MAX_FRAME;

/// Which streams a request uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Commands between nodes.
    Data,
    /// Raft, proposals: goes before data.
    Control,
}

/// Whom a connection's certificate (or the want of one) makes the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// A member, in one of its runs.
    Node {
        /// Which node.
        uid: NodeUid,
        /// Which run of it.
        boot: BootId,
    },
    /// An operator.
    Admin,
    /// Somebody without a certificate, who may ask to join.
    Joiner,
}

/// A request of a lane.
pub struct Request {
    /// Who asks.
    pub from: PeerIdentity,
    /// Over which lane.
    pub lane: Lane,
    /// What about: see [`kind`](super::kind).
    pub kind: u8,
    /// Opaque. May be a slice of a larger network buffer: copy what is kept for long.
    pub payload: Bytes,
    /// When the caller stops waiting, by this node's clock.
    pub deadline: Instant,
    /// Where the answer goes.
    pub responder: Responder,
}

/// What a node does for its peers.
pub trait Service: Send + Sync + 'static {
    /// Called on the network's threads for each request of a lane: must not block or run long;
    /// spawn what waits.
    fn request(&self, request: Request);

    /// A bulk stream opened by a peer, its kind and header already read. Spawn.
    fn bulk(&self, from: PeerIdentity, kind: u8, header: Bytes, stream: BulkStream);

    /// A peer's hello says that the cluster began another lineage, newer than what this node says
    /// itself (R19).
    fn newer_lineage(&self, _: NodeUid, _: Lineage) {}

    /// A datagram of a node. Called on the network's threads: must not block. Datagrams may be lost
    /// and may overtake each other.
    fn datagram(&self, _from: NodeUid, _bytes: Bytes) {}

    /// There is a connection to this node, whoever dialled. Must not block.
    fn connected(&self, _peer: NodeUid) {}

    /// What speaks against a run of a peer: a start of the same node that was found to be its newest, and
    /// is newer. `None` if nothing does. Must not block.
    fn outdated(&self, _peer: NodeUid, _start: Start) -> Option<String> {
        None
    }

    /// A peer says that another run of this very node exists (two processes with one data directory's
    /// identity) whose disk was found to be newer: this one should stop. `why` is in the peer's words.
    fn superseded(&self, _why: &str) {}

    /// A peer says that another run of this very node is connected to it, and answers. One of the two should
    /// stop: the one that has just started, or that no peer has a link to. `linked`: at least one has one to this
    /// run. Called again each time a peer is dialled.
    fn runs_twice(&self, _why: &str, _linked: bool) {}

    /// A peer says that this node was removed from the cluster by force (R3): it should stop.
    fn removed(&self) {}

    /// A peer of a newer lineage says that this node is no member of it: it should serve nobody any more.
    fn outside(&self) {}

    /// One of the two has removed the other, which was recovered into a newer lineage: the cluster has two
    /// histories, and nobody but an operator can tell which one counts. Called again each time they meet.
    fn rival(&self, _peer: NodeUid) {}
}

/// Owes one answer. Dropped without, the caller is told so at once.
pub struct Responder {
    to: Option<To>,
}

enum To {
    Peer { lanes: Arc<Lanes>, lane: Lane, id: u64, waiting: Arc<AtomicUsize> },
    Here(oneshot::Sender<Bytes>),
}

impl Responder {
    /// One that answers within this process; the receiver ends with an error if it is dropped.
    pub fn local() -> (Responder, oneshot::Receiver<Bytes>) {
        let (sender, receiver) = oneshot::channel();
        (Responder { to: Some(To::Here(sender)) }, receiver)
    }

    /// `waiting` is counted up here and down when the answer is given.
    pub(super) fn lane(lanes: Arc<Lanes>, lane: Lane, id: u64, waiting: Arc<AtomicUsize>) -> Responder {
        waiting.fetch_add(1, Ordering::Relaxed);
        Responder { to: Some(To::Peer { lanes, lane, id, waiting }) }
    }

    /// Answers; never blocks. An answer above [`MAX_FRAME`] cannot be sent: the caller gets
    /// [`NoAnswer`](super::CallError::NoAnswer), so whoever makes answers has a limit below that.
    pub fn send(mut self, payload: Bytes) {
        if payload.len() > MAX_FRAME {
            tracing::error!(bytes = payload.len(), limit = MAX_FRAME, "answer too large for a frame");
            return;
        }
        match self.to.take() {
            Some(To::Peer { lanes, lane, id, waiting }) => {
                waiting.fetch_sub(1, Ordering::Relaxed);
                lanes.answer(lane, FrameType::Answer, id, payload);
            }
            Some(To::Here(sender)) => {
                let _ = sender.send(payload);
            }
            None => {}
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(To::Peer { lanes, lane, id, waiting }) = self.to.take() {
            waiting.fetch_sub(1, Ordering::Relaxed);
            lanes.answer(lane, FrameType::NoAnswer, id, Bytes::new());
        }
    }
}
