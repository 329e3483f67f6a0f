//! A peer's request, and the handle that sends its response.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use annulus_core::ids::{BootId, Digest, NodeUid};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::frame::FrameType;
use super::lane::Lane;
use super::lanes::Lanes;
use super::limits::MAX_FRAME;

/// A request on a lane.
pub struct Request {
    /// The sender.
    pub from: PeerIdentity,
    /// The lane class that the request arrived on.
    pub lane: Lane,
    /// Message kind; see [`kind`](super::kind).
    pub kind: u8,
    /// Opaque to the transport. May be a slice of a larger network buffer: copy what is kept for long.
    pub payload: Bytes,
    /// The caller's deadline, by this node's clock.
    pub deadline: Instant,
    /// Sends the response.
    pub responder: Responder,
}

/// The identity that a peer's certificate, or the lack of one, proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// A member of the cluster.
    Node {
        /// The node's uid.
        uid: NodeUid,
        /// The process: one boot id per start.
        boot: BootId,
    },
    /// An operator.
    Admin {
        /// The digest of the key of its credential.
        key: Option<Digest>,
    },
    /// A peer without a certificate. It may only ask to join.
    Joiner,
}

/// Sends the one response to a request. If it is dropped, the caller learns at once that there will be no
/// response.
pub struct Responder {
    to: Option<Target>,
}

enum Target {
    Peer { lanes: Arc<Lanes>, lane: Lane, id: u64, outstanding: Arc<AtomicUsize> },
    Local(oneshot::Sender<Bytes>),
}

impl Responder {
    /// Create a responder within this process. The receiver fails if the responder is dropped.
    pub fn local() -> (Responder, oneshot::Receiver<Bytes>) {
        let (sender, receiver) = oneshot::channel();
        (Responder { to: Some(Target::Local(sender)) }, receiver)
    }

    /// Create a responder to a peer. Increments `outstanding` now, and decrements it when the response is
    /// sent or the responder is dropped.
    pub(super) fn remote(lanes: Arc<Lanes>, lane: Lane, id: u64, outstanding: Arc<AtomicUsize>) -> Responder {
        outstanding.fetch_add(1, Ordering::Relaxed);
        Responder { to: Some(Target::Peer { lanes, lane, id, outstanding }) }
    }

    /// Send the response; never blocks. A response larger than [`MAX_FRAME`] cannot be sent, and the caller
    /// gets [`NoAnswer`](super::CallError::NoAnswer), so the code that builds responses must limit their
    /// size.
    pub fn send(self, payload: Bytes) {
        if payload.len() > MAX_FRAME {
            tracing::error!(bytes = payload.len(), limit = MAX_FRAME, "response too large for a frame");
            return;
        }
        self.finish(FrameType::Answer, payload);
    }

    /// Refuse the request as overloaded. Nothing was executed.
    pub(super) fn refuse(self) {
        self.finish(FrameType::Overloaded, Bytes::new());
    }

    fn finish(mut self, frame_type: FrameType, payload: Bytes) {
        match self.to.take() {
            Some(Target::Peer { lanes, lane, id, outstanding }) => {
                let before = outstanding.fetch_sub(1, Ordering::Relaxed);
                debug_assert!(before > 0, "more responses than requests");
                lanes.respond(lane, frame_type, id, payload);
            }
            Some(Target::Local(sender)) if frame_type == FrameType::Answer => {
                let _ = sender.send(payload);
            }
            // A local caller learns of the drop from its channel.
            Some(Target::Local(_)) | None => {}
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(Target::Peer { lanes, lane, id, outstanding }) = self.to.take() {
            outstanding.fetch_sub(1, Ordering::Relaxed);
            lanes.respond(lane, FrameType::NoAnswer, id, Bytes::new());
        }
    }
}
