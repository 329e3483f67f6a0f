//! Communication between the nodes of a cluster: QUIC with TLS identities, request lanes and bulk streams.
//!
//! Each node has one [`Transport`] with one UDP port for both directions. Each pair of nodes shares one
//! mutually authenticated connection (`identity`, `tls`), which starts with a hello from both sides
//! (`hello`). A connection carries:
//!
//! - lanes: a few long-lived streams of requests and responses, matched by id and in any order, with
//!   many frames per write ([`Transport::call`]);
//! - bulk streams for large transfers, below the lanes in priority ([`Transport::open_bulk`]);
//! - datagrams ([`Transport::send_datagram`]).
//!
//! Incoming traffic is a stream of events: [`Transport::bind`] returns an [`Inbound`] beside the transport.
//! Only data requests are passed on by a direct call, [`Service::request`].
//!
//! A connection also shows that a peer is alive. A peer that sends nothing for [`limits::SILENCE_LIMIT`] is
//! considered gone: outstanding calls fail with [`CallError::Lost`] at once, and new calls fail with
//! [`CallError::Unreachable`] until a background dial succeeds.
//!
//! The network below is quinn's, or an in-memory one for simulated nodes (`wire`, [`memory`]). All other code
//! is the same for both.
//!
//! Invariants: nothing from a peer is read before its hello is accepted; every wait and every queue has a
//! limit (`limits` lists them); payloads are not parsed, and are copied at most once.
//!
//! Tasks: the accept loop ends when [`Transport::close`] closes the endpoint. That also closes every
//! connection, and with it end the tasks of the connection. A dial task ends at its next attempt.

mod accept;
mod admins;
mod arrival;
mod badge;
pub mod beat;
mod bulk;
mod certificate;
pub mod client;
mod close;
mod dial;
mod dialler;
mod error;
mod frame;
mod handshakes;
mod hello;
mod hub;
pub mod identity;
mod inbound;
pub mod kind;
mod lane;
mod lanes;
pub mod limits;
mod link;
mod lookup;
pub mod memory;
mod message;
mod peer;
mod pending;
mod queue;
mod reader;
mod request;
mod session;
mod shared;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod tuning;
mod udp;
mod wire;

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use annulus_core::ids::{BootId, ClusterId, Digest, NodeUid, Start};
use annulus_core::state::Lineage;
use annulus_core::version::Speaks;
use arc_swap::ArcSwap;
use bytes::Bytes;
use quinn::VarInt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

pub use self::bulk::{BulkRecv, BulkSend, BulkStream};
pub use self::error::{BindError, BulkError, CallError, ConnectError};
pub use self::handshakes::HandshakeCount;
use self::identity::{IdentityError, TlsIdentity};
use self::inbound::Outlet;
pub use self::inbound::{Event, Inbound, Service};
pub use self::lane::Lane;
use self::link::Link;
pub use self::lookup::{LookupError, look_up};
pub use self::request::{PeerIdentity, Request, Responder};
use self::shared::{Shared, Trust};
pub use self::wire::Net;
use self::wire::{Credentials, Endpoint};

/// The identity of a node and the authorities that it trusts.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Address to listen on; port 0 picks a free port.
    pub listen: SocketAddr,
    /// Peers of another cluster are refused.
    pub cluster: ClusterId,
    /// Sent in the hello.
    pub lineage: Lineage,
    /// Must match the certificate.
    pub uid: NodeUid,
    /// Identifies this process.
    pub boot: BootId,
    /// Counts the starts on the node's data directory.
    pub start: Start,
    /// Certificate and key of this node.
    pub identity: TlsIdentity,
    /// Trusted authorities in PEM; at least one.
    pub authorities: Vec<String>,
}

/// A node and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddr {
    /// The node.
    pub uid: NodeUid,
    /// The address that it listens on.
    pub addr: SocketAddr,
}

/// A node's end of all its connections. Clones share the same transport, which works until
/// [`Transport::close`].
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

impl Transport {
    /// Listen on the configured address and accept connections. Call this on the runtime that connections
    /// live on; all other functions may be called on any runtime.
    ///
    /// Data requests go to `service`, everything else to [`Inbound`]. The transport keeps neither alive:
    /// without them, it refuses incoming requests and streams.
    pub fn bind(
        config: TransportConfig,
        service: Weak<dyn Service>,
    ) -> Result<(Transport, Inbound), BindError> {
        Self::bind_on(&Net::Udp, Speaks::THIS, config, service)
    }

    /// Like [`Transport::bind`], on a given network and announcing given versions.
    pub fn bind_on(
        net: &Net,
        speaks: Speaks,
        config: TransportConfig,
        service: Weak<dyn Service>,
    ) -> Result<(Transport, Inbound), BindError> {
        let credentials = Credentials::new(net, &config.identity, &config.authorities)?;
        let (tuning, accepting) = (tuning::transport(), tuning::accepting());
        let listen = |source| BindError::Listen { addr: config.listen, source };
        let server = credentials.server(accepting);
        let endpoint = Endpoint::bind(net, config.listen, Some(server)).map_err(listen)?;
        let (outlet, inbound) = Outlet::new(service);
        let shared = Arc::new(Shared {
            local_addr: endpoint.local_addr().map_err(listen)?,
            endpoint: Some(endpoint.clone()).into(),
            socket: endpoint.socket(),
            net: net.clone(),
            runtime: tokio::runtime::Handle::current(),
            outlet: Arc::new(outlet),
            cluster: config.cluster,
            uid: config.uid,
            boot: config.boot,
            start: config.start,
            lineage: config.lineage.into(),
            speaks,
            level: None.into(),
            trust: Trust { identity: config.identity, authorities: config.authorities }.into(),
            credentials: ArcSwap::from_pointee(credentials),
            tuning,
            handshakes: Default::default(),
            joiners: Arc::new(Semaphore::new(limits::MAX_JOINERS)),
            admins: Default::default(),
            peers: Default::default(),
            banned: Default::default(),
            left: Default::default(),
            members: Default::default(),
        });
        annulus_ground::spawn(accept::accept(shared.clone(), endpoint));
        Ok((Transport { shared }, inbound))
    }

    /// Return a reference that shows whether the transport was freed. For leak checks.
    pub fn remains(&self) -> Weak<dyn Any + Send + Sync> {
        let held: Arc<dyn Any + Send + Sync> = self.shared.clone();
        Arc::downgrade(&held)
    }

    /// Return the address that this transport listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr
    }

    /// Send one request and wait for its response. If there is no connection, the peer is dialled, and the
    /// first call to a peer waits for the dial. A call to this node itself needs no connection.
    pub async fn call(
        &self,
        peer: &PeerAddr,
        lane: Lane,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if payload.len() > limits::MAX_FRAME {
            return Err(CallError::TooLarge { bytes: payload.len(), limit: limits::MAX_FRAME });
        }
        if peer.uid == self.shared.uid {
            return self.call_local(lane, kind, payload, deadline).await;
        }
        loop {
            let link = self.link(peer, deadline).await?;
            // `None` means that the link ended before anything was sent, and may have been replaced.
            if let Some(result) = link.call(lane, kind, payload.clone(), deadline).await {
                return result;
            }
            self.wait_replaced(&link, deadline).await?;
        }
    }

    async fn call_local(
        &self,
        lane: Lane,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if kind == kind::ECHO {
            return Ok(payload);
        }
        let (responder, response) = Responder::local();
        let from = PeerIdentity::Node { uid: self.shared.uid, boot: self.shared.boot };
        self.shared.outlet.request(Request { from, lane, kind, payload, deadline, responder });
        match tokio::time::timeout_at(deadline, response).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) => Err(CallError::NoAnswer),
            Err(_) => Err(CallError::Deadline { sent: true }),
        }
    }

    /// Open a bulk stream to a node, below the lanes in priority. Waits while
    /// [`limits::MAX_BULK_STREAMS`] are open to this peer.
    pub async fn open_bulk(
        &self,
        peer: &PeerAddr,
        kind: u8,
        header: Bytes,
        deadline: Instant,
    ) -> Result<BulkStream, CallError> {
        if header.len() > limits::MAX_BULK_HEADER {
            return Err(CallError::TooLarge { bytes: header.len(), limit: limits::MAX_BULK_HEADER });
        }
        loop {
            let link = self.link(peer, deadline).await?;
            if let Some(result) = link.open_bulk(kind, header.clone(), deadline).await {
                return result;
            }
            self.wait_replaced(&link, deadline).await?;
        }
    }

    /// Send a datagram, or drop it. Without a connection, dials once in the background for later datagrams.
    /// Never waits and never reports the outcome.
    pub fn send_datagram(&self, peer: &PeerAddr, bytes: Bytes) {
        if peer.uid == self.shared.uid || self.shared.is_banned(peer.uid) {
            return;
        }
        let entry = self.shared.peer(peer.uid);
        match entry.link() {
            // An error means that the connection is ending, or that the peer does not accept datagrams.
            Some(link) => drop(link.connection.send_datagram(bytes)),
            None => dialler::knock(&self.shared, &entry, peer.addr),
        }
    }

    /// Connect to the node of this cluster that listens at an address, and return its uid. If that node is
    /// connected already, the spare connection is closed later. The error is for display; nothing is left
    /// open. Bounded by [`limits::DIAL_LIMIT`].
    pub async fn meet(&self, addr: SocketAddr) -> Result<NodeUid, String> {
        let shared = self.shared.clone();
        // Connections live on the network runtime.
        let met = annulus_ground::spawn_on(&self.shared.runtime, async move {
            let session = dial::dial(&shared, None, addr).await?;
            let peer = session.peer();
            dialler::serve(session);
            Ok(peer)
        });
        met.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn link(&self, peer: &PeerAddr, deadline: Instant) -> Result<Arc<Link>, CallError> {
        let entry = self.shared.peer(peer.uid);
        match entry.link() {
            Some(link) => Ok(link),
            None if self.shared.is_banned(peer.uid) => {
                Err(CallError::Unreachable("the node was removed from the cluster".to_owned()))
            }
            None => dialler::connected(&self.shared, &entry, peer.addr, deadline).await,
        }
    }

    /// Wait until a link that refuses calls has been replaced in its entry, which happens shortly.
    async fn wait_replaced(&self, link: &Arc<Link>, deadline: Instant) -> Result<(), CallError> {
        let peer = self.shared.peer(link.uid);
        tokio::time::timeout_at(deadline, peer.replaced(link))
            .await
            .map_err(|_| CallError::Deadline { sent: false })
    }

    /// Return true if the peer is connected and has sent something within [`limits::SILENCE_LIMIT`].
    pub fn is_up(&self, uid: NodeUid) -> bool {
        uid == self.shared.uid || self.shared.peers.read().get(&uid).is_some_and(|peer| peer.link().is_some())
    }

    /// Dial a lost peer at once, and make calls wait for that attempt. Call this when another node reports
    /// that the peer is back. It has no effect if the peer is connected.
    pub fn hurry(&self, uid: NodeUid) {
        if let Some(peer) = self.shared.peers.read().get(&uid) {
            peer.hurry();
        }
    }

    /// Return the remote address of a connected peer, known to the cluster or not.
    pub fn linked(&self, uid: NodeUid) -> Option<PeerAddr> {
        let link = self.shared.peers.read().get(&uid)?.link()?;
        Some(PeerAddr { uid, addr: link.connection.remote_address() })
    }

    /// Return the handshakes in progress, and the connections that were refused because of too many.
    pub fn handshakes(&self) -> HandshakeCount {
        self.shared.handshakes.count()
    }

    /// Return the reason for which the last attempt to reach a peer failed, if the peer is not connected.
    pub fn why_down(&self, uid: NodeUid) -> Option<String> {
        let peer = self.shared.peers.read().get(&uid).cloned()?;
        peer.failure()
    }

    /// Return the lineage and boot id from a connected peer's hello.
    pub fn peer_info(&self, uid: NodeUid) -> Option<(Lineage, BootId)> {
        let link = self.shared.peers.read().get(&uid)?.link()?;
        Some((link.lineage, link.boot))
    }

    /// Return the versions in a peer's last hello; `None` if it has not connected since this node started.
    pub fn peer_speaks(&self, uid: NodeUid) -> Option<Speaks> {
        if uid == self.shared.uid {
            return Some(self.shared.speaks);
        }
        let peer = self.shared.peers.read().get(&uid).cloned();
        peer?.speaks()
    }

    /// Set the cluster's state level. Nodes that do not support it are refused and disconnected.
    pub fn set_level(&self, level: u32) {
        *self.shared.level.lock() = Some(level);
        let peers: Vec<_> = self.shared.peers.read().values().cloned().collect();
        for link in peers.iter().flat_map(|peer| peer.links()) {
            if let Err((close, reason)) = self.shared.check_level(link.uid, link.speaks.levels, Some(level)) {
                tracing::warn!(peer = %link.uid, reason, "disconnected");
                link.note_end(&reason);
                close.close(&link.connection, &reason);
            }
        }
    }

    /// Set the lineage sent in later hellos.
    pub fn set_lineage(&self, lineage: Lineage) {
        *self.shared.lineage.lock() = lineage;
    }

    /// Replace the trusted authorities. Peers whose certificate leads to none of them are disconnected. On an
    /// error, nothing changes.
    pub fn set_authorities(&self, authorities: Vec<String>) -> Result<(), IdentityError> {
        let mut trust = self.shared.trust.lock();
        self.renew(&mut trust, |trust| trust.authorities = authorities)
    }

    /// Replace the certificate shown on later connections. On an error, nothing changes.
    pub fn set_identity(&self, identity: TlsIdentity) -> Result<(), IdentityError> {
        let mut trust = self.shared.trust.lock();
        self.renew(&mut trust, |trust| trust.identity = identity)
    }

    fn renew(&self, trust: &mut Trust, change: impl FnOnce(&mut Trust)) -> Result<(), IdentityError> {
        let mut renewed = trust.clone();
        change(&mut renewed);
        if renewed == *trust {
            return Ok(());
        }
        let credentials =
            Arc::new(Credentials::new(&self.shared.net, &renewed.identity, &renewed.authorities)?);
        let config = credentials.server(tuning::accepting());
        if let Some(endpoint) = self.shared.endpoint() {
            endpoint.set_server_config(config);
        }
        self.shared.credentials.store(credentials.clone());
        *trust = renewed;
        let reason = "the authority is no longer trusted";
        self.disconnect(|link| !credentials.trusts(&link.proof), close::Close::Banned, reason);
        Ok(())
    }

    /// Replace the set of nodes that are refused and disconnected because they were removed.
    pub fn set_banned(&self, banned: HashSet<NodeUid>) {
        *self.shared.banned.write() = banned;
        let reason = "this node was removed from the cluster";
        self.disconnect(|link| self.shared.is_banned(link.uid), close::Close::Removed, reason);
    }

    /// Replace the set of nodes that have left. They are refused, and told the reason. Their present connections
    /// stay until [`Transport::end_left`], so that they can hear of their removal by the log.
    pub fn set_left(&self, left: HashSet<NodeUid>) {
        *self.shared.left.write() = left;
    }

    /// Disconnect the nodes that have left.
    pub fn end_left(&self) {
        let left = self.shared.left.read().clone();
        self.disconnect(
            |link| left.contains(&link.uid),
            close::Close::Removed,
            "this node has left the cluster",
        );
    }

    /// Replace the members, each with the digest of its key if that is known. A certificate with a member's name and
    /// another key is refused, and so is a node of an older lineage that is not among them.
    pub fn set_members(&self, members: HashMap<NodeUid, Option<Digest>>) {
        *self.shared.members.write() = Some(members);
    }

    fn disconnect(&self, which: impl Fn(&Link) -> bool, why: close::Close, reason: &str) {
        let peers: Vec<_> = self.shared.peers.read().values().cloned().collect();
        for link in peers.iter().flat_map(|peer| peer.links()).filter(|link| which(link)) {
            why.close(&link.connection, reason);
        }
    }

    /// Close all connections and refuse new ones, for all clones. Peers learn of it at once. Outstanding
    /// calls fail with [`CallError::Lost`]. The port is free once the last packets are sent: normally when
    /// this returns, which takes at most [`limits::CLOSE_LIMIT`].
    pub async fn close(&self) {
        let Some(endpoint) = self.shared.endpoint.write().take() else { return };
        endpoint.close(VarInt::from_u32(close::Close::Done as u32), b"the node was stopped");
        let _ = timeout(limits::CLOSE_LIMIT, endpoint.wait_idle()).await;
    }
}
