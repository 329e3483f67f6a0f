//! One live connection to one process of another node: its lanes and its bulk streams.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use annulus_core::ids::{BootId, NodeUid};
use annulus_core::state::Lineage;
use annulus_core::version::Speaks;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::arrival::LastArrival;
use super::beat;
use super::bulk::{BulkStream, TokenInner};
use super::close::{Close, describe};
use super::error::CallError;
use super::hello::Hello;
use super::inbound::Outlet;
use super::lane::Lane;
use super::lanes::{LaneError, Lanes};
use super::limits::{MAX_BULK_STREAMS, SILENCE_LIMIT, SILENCE_LOOK};
use super::reader::Reader;
use super::request::PeerIdentity;
use super::stream::open_bulk;
use super::udp::QuietSocket;
use super::wire::{Connection, Halves, Proof};

pub(super) struct Link {
    pub connection: Connection,
    pub uid: NodeUid,
    pub boot: BootId,
    pub lineage: Lineage,
    pub speaks: Speaks,
    /// True if this side dialled.
    pub dialled: bool,
    /// The identity that the peer proved.
    pub proof: Proof,
    lanes: Arc<Lanes>,
    bulk_slots: Arc<Semaphore>,
    /// There is one clone per open bulk stream of either side, and this one.
    pub bulk_in_use: Arc<()>,
    /// Unanswered requests of the peer.
    requests: Arc<AtomicUsize>,
    activity: Arc<AtomicUsize>,
    /// The reason for which this side closed the connection, if it says more than QUIC's close reason.
    ended: OnceLock<String>,
}

/// Close a connection on which nothing arrives for [`SILENCE_LIMIT`]. Every packet counts, including
/// keep-alives.
async fn end_when_silent(link: Weak<Link>, connection: Connection, socket: Weak<QuietSocket>) {
    let is_silent = match &connection {
        Connection::Quic(connection) => falls_silent(connection, socket).await,
        Connection::Memory(connection) => connection.falls_silent(SILENCE_LIMIT).await,
    };
    if !is_silent {
        return;
    }
    if let Some(link) = link.upgrade() {
        link.note_end("the peer fell silent");
    }
    Close::Silent.close(&connection, "nothing came from this peer for too long");
}

/// Wait until nothing has arrived for [`SILENCE_LIMIT`]. Returns false if the connection ends first.
async fn falls_silent(connection: &quinn::Connection, socket: Weak<QuietSocket>) -> bool {
    let packets = || connection.stats().udp_rx.datagrams;
    let listen = || socket.upgrade().map(|socket| socket.watch(connection.remote_address()));
    // `None` means that the socket is closed, and with it the connection.
    let Some(mut heard) = listen() else { return false };
    let mut before = packets();
    let mut from = heard.at();
    loop {
        let quiet = |heard: &LastArrival| from.max(heard.at()) + (SILENCE_LIMIT - SILENCE_LOOK);
        let due = quiet(&heard);
        tokio::select! {
            _ = connection.closed() => return false,
            () = tokio::time::sleep_until(beat::before(due)) => {}
        }
        let came = packets();
        if quiet(&heard) > due && came != before {
            before = came;
            continue;
        }
        tokio::select! {
            _ = connection.closed() => return false,
            () = tokio::time::sleep_until(due) => {}
        }
        let now = Instant::now();
        if now > due + SILENCE_LOOK {
            // This process was stalled, not the peer: packets that arrived during the stall wait in its
            // socket.
            from = now;
            continue;
        }
        if connection.remote_address() != heard.addr {
            let Some(moved) = listen() else { return false };
            heard = moved;
            continue;
        }
        let came = packets();
        let is_heard = heard.at() + (SILENCE_LIMIT - SILENCE_LOOK) > now;
        if !(is_heard && came != before) {
            // Nothing arrived, or only packets of another connection at that address. Check one last time.
            tokio::select! {
                _ = connection.closed() => return false,
                () = tokio::time::sleep_until(now + SILENCE_LOOK) => {}
            }
            if packets() == came {
                return true;
            }
        }
        before = packets();
    }
}

impl Link {
    pub(super) fn new(connection: Connection, peer: &Hello, dialled: bool) -> Arc<Self> {
        Arc::new(Self {
            uid: peer.uid,
            boot: peer.boot,
            lineage: peer.lineage,
            speaks: peer.speaks,
            dialled,
            proof: connection.proof(),
            connection,
            lanes: Arc::default(),
            bulk_slots: Arc::new(Semaphore::new(MAX_BULK_STREAMS)),
            bulk_in_use: Arc::new(()),
            requests: Arc::default(),
            activity: Arc::default(),
            ended: OnceLock::new(),
        })
    }

    /// Start the reader and writer of each lane. Call this once, on the network runtime. All these tasks end
    /// with the connection.
    pub(super) fn start(
        self: &Arc<Self>,
        streams: Vec<Halves>,
        outlet: &Arc<Outlet>,
        socket: &Weak<QuietSocket>,
    ) {
        annulus_ground::spawn(end_when_silent(Arc::downgrade(self), self.connection.clone(), socket.clone()));
        for (index, (send, recv)) in streams.into_iter().enumerate() {
            annulus_ground::spawn(self.lanes.clone().write(index, send));
            let reader = Reader {
                lanes: self.lanes.clone(),
                lane: Lane::at(index),
                from: self.identity(),
                outlet: outlet.clone(),
                outstanding: self.requests.clone(),
                activity: self.activity.clone(),
            };
            let connection = self.connection.clone();
            annulus_ground::spawn(async move {
                let reason = match reader.run(recv).await {
                    Ok(()) => "a lane was ended".to_owned(),
                    Err(error) => error.to_string(),
                };
                // Does nothing if the reader ended because the connection did.
                Close::Protocol.close(&connection, &reason);
            });
        }
    }

    /// Return the token that a bulk stream of the peer holds while it is open.
    pub(super) fn bulk_token(&self) -> TokenInner {
        TokenInner { _in_use: self.bulk_in_use.clone(), _permit: None, _keep: None }
    }

    pub(super) fn identity(&self) -> PeerIdentity {
        PeerIdentity::Node { uid: self.uid, boot: self.boot }
    }

    /// Send one request and wait for its response. `None` if the link ended before anything was sent.
    pub(super) async fn call(
        &self,
        lane: Lane,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> Option<Result<Bytes, CallError>> {
        Some(match self.lanes.call(lane, kind, payload, deadline).await {
            Ok(answer) => Ok(answer),
            Err(LaneError::Closed) => return None,
            Err(LaneError::Lost) => Err(CallError::Lost(self.why_closed())),
            Err(LaneError::Call(error)) => Err(error),
        })
    }

    /// Open a bulk stream. `None` if the link ended first.
    pub(super) async fn open_bulk(
        &self,
        kind: u8,
        header: Bytes,
        deadline: Instant,
    ) -> Option<Result<BulkStream, CallError>> {
        let late = |_| CallError::Deadline { sent: false };
        let slot = match timeout_at(deadline, self.bulk_slots.clone().acquire_owned()).await {
            Ok(Ok(slot)) => slot,
            // The semaphore is never closed.
            Ok(Err(_)) => return None,
            Err(elapsed) => return Some(Err(late(elapsed))),
        };
        let token = TokenInner { _in_use: self.bulk_in_use.clone(), _permit: Some(slot), _keep: None };
        match timeout_at(deadline, open_bulk(&self.connection, kind, header)).await {
            Ok(Ok((send, recv))) => Some(Ok(BulkStream::new(send, recv, Arc::new(token)))),
            Ok(Err(_)) => None,
            Err(elapsed) => Some(Err(late(elapsed))),
        }
    }

    /// Return true if this side has nothing in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.lanes.is_idle()
            && self.requests.load(Ordering::Relaxed) == 0
            && Arc::strong_count(&self.bulk_in_use) == 1
    }

    /// Return a counter that changes with every read from a lane.
    pub(super) fn activity(&self) -> usize {
        self.activity.load(Ordering::Relaxed)
    }

    /// Record why this side is about to close the connection.
    pub(super) fn note_end(&self, why: &str) {
        let _ = self.ended.set(why.to_owned());
    }

    /// Fail all outstanding calls. The connection must be closed already.
    pub(super) fn end(&self) {
        self.lanes.close();
    }

    pub(super) fn why_closed(&self) -> String {
        if let Some(why) = self.ended.get() {
            return why.clone();
        }
        self.connection.close_reason().map_or_else(|| "unknown".to_owned(), |error| describe(&error))
    }
}
