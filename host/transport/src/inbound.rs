//! Incoming traffic: a stream of events, and the two direct calls beside it.
//!
//! The transport owns no part of the node. It sends incoming items as [`Event`]s through a bounded channel to
//! the owner of [`Inbound`], and it holds a weak reference to the [`Service`] that handles data requests
//! without a hop. So the node owns the transport, and either can be freed without detaching the other.

use std::sync::Weak;

use annulus_core::ids::{NodeUid, Start};
use annulus_core::state::Lineage;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::bulk::BulkStream;
use super::lane::Lane;
use super::limits::MAX_EVENTS;
use super::request::{PeerIdentity, Request};

/// The events of one transport, in order of arrival per connection.
///
/// Poll this without pause. While [`MAX_EVENTS`] are queued, control requests are refused as overloaded,
/// datagrams are dropped, and new streams and connections wait.
pub struct Inbound {
    events: mpsc::Receiver<Event>,
}

impl Inbound {
    /// Return the next event, or `None` after the transport and all its connections are gone.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

/// One incoming item.
pub enum Event {
    /// A request on the control lane.
    Request(Request),
    /// A bulk stream that a peer opened.
    Stream {
        /// The peer.
        from: PeerIdentity,
        /// Message kind; see [`kind`](super::kind).
        kind: u8,
        /// The bytes that the peer sent with the kind.
        header: Bytes,
        /// Both halves, positioned after the header.
        stream: BulkStream,
    },
    /// A datagram of a node. Datagrams may be lost or reordered.
    Datagram {
        /// The sender.
        from: NodeUid,
        /// The payload.
        bytes: Bytes,
    },
    /// A connection to this node is in use, dialled by either side.
    Connected(NodeUid),
    /// A peer's hello names a lineage newer than this node's (R19).
    NewerLineage {
        /// The peer.
        peer: NodeUid,
        /// Its lineage.
        lineage: Lineage,
    },
    /// A peer reports that another process of this node has the newer disk. This process should stop.
    Superseded {
        /// The peer's reason.
        why: String,
    },
    /// A peer reports that another process of this node is connected to it and responds. One of the two
    /// should stop: the one that just started, or the one that no peer is connected to. Repeated with each
    /// attempt to dial the peer.
    RunsTwice {
        /// The peer's reason.
        why: String,
        /// True if at least one peer is connected to this process.
        linked: bool,
    },
    /// A peer reports that this node was removed from the cluster (R3), or has left it. It should stop.
    Removed,
    /// A peer of a newer lineage reports that this node is not a member. It should stop serving.
    Outside,
    /// One of the two nodes removed the other, which was then recovered into a newer lineage. The cluster
    /// has two histories, and only an operator can choose between them. Repeated with each connection attempt.
    Rival(NodeUid),
}

/// The part of a node that the transport calls directly. It handles data requests, because a hop through the
/// event channel costs more than the direct call, and it answers a question that a handshake waits for.
pub trait Service: Send + Sync + 'static {
    /// Handle a request on a data lane. It is called on the network threads, so it must not block or run
    /// long. Spawn a task to wait.
    fn request(&self, request: Request);

    /// Return the reason to refuse a process of a peer, if a different start of the same node is known to
    /// have the newer disk. Must not block.
    fn outdated(&self, _peer: NodeUid, _start: Start) -> Option<String> {
        None
    }
}

/// The transport's side of the event channel, and its direct way to the node.
pub(super) struct Outlet {
    events: mpsc::Sender<Event>,
    service: Weak<dyn Service>,
}

impl Outlet {
    pub(super) fn new(service: Weak<dyn Service>) -> (Self, Inbound) {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        (Self { events: sender, service }, Inbound { events })
    }

    /// Pass on a request. The request is refused as overloaded if the node is gone or does not keep up.
    pub(super) fn request(&self, request: Request) {
        match request.lane {
            Lane::Data => match self.service.upgrade() {
                Some(service) => service.request(request),
                None => request.responder.refuse(),
            },
            Lane::Control => {
                if let Err(TrySendError::Full(event) | TrySendError::Closed(event)) =
                    self.events.try_send(Event::Request(request))
                    && let Event::Request(request) = event
                {
                    request.responder.refuse();
                }
            }
        }
    }

    /// Pass on a datagram, or drop it if the node does not keep up.
    pub(super) fn datagram(&self, from: NodeUid, bytes: Bytes) {
        let _ = self.events.try_send(Event::Datagram { from, bytes });
    }

    /// Pass on an event that must not be lost. Wait for room in the channel. The event is dropped only if the
    /// node is gone.
    pub(super) async fn send(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    /// Call [`Service::outdated`], or return `None` if the node is gone.
    pub(super) fn outdated(&self, peer: NodeUid, start: Start) -> Option<String> {
        self.service.upgrade()?.outdated(peer, start)
    }
}
