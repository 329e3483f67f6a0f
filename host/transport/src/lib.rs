//! QUIC, TLS identities, request lanes and bulk streams: how the nodes of a cluster talk.
//!
//! One [`Transport`] per node: one UDP port for both directions. Each pair of nodes has one
//! connection, mutually authenticated (`identity`, `tls`), that begins with a hello of both sides
//! (`hello`). On it live:
//!
//! - lanes: a few long-lived streams on which requests and answers pass with ids, in any order,
//!   many in one write ([`Transport::call`], [`Service::request`]);
//! - bulk streams for what is large, behind the lanes ([`Transport::open_bulk`], [`Service::bulk`]).
//!
//! The connection is also how a node is known to live: a peer that says nothing for
//! [`limits::SILENCE_LIMIT`] is gone. Its calls end as [`CallError::Lost`] at once, new ones are
//! [`CallError::Unreachable`] until a dial in the background succeeds.
//!
//! The network below is quinn's, or for a simulated node one in memory (`wire`, [`memory`]); all else is the same
//! code over both.
//!
//! What must hold: nothing of a peer is read before its hello was accepted; nothing waits without
//! a limit (`limits` has them all); a payload is never looked into, and copied at most once.

mod accept;
mod admins;
mod badge;
pub mod beat;
mod bulk;
pub mod client;
mod close;
mod dial;
mod error;
mod frame;
mod heard;
mod hello;
mod hub;
pub mod identity;
pub mod kind;
mod lane;
pub mod limits;
mod link;
mod lookup;
pub mod memory;
mod message;
mod peer;
mod pending;
mod queue;
mod service;
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
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use annulus_core::ids::{BootId, ClusterId, NodeUid, Start};
use annulus_core::state::Lineage;
use annulus_core::version::Speaks;
use arc_swap::ArcSwap;
use bytes::Bytes;
use quinn::VarInt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

pub use self::bulk::{BulkRecv, BulkSend, BulkStream};
pub use self::error::{BindError, BulkError, CallError, ConnectError};
use self::identity::{IdentityError, TlsIdentity};
use self::link::Link;
pub use self::lookup::{LookupError, look_up};
pub use self::service::{Lane, PeerIdentity, Request, Responder, Service};
use self::shared::{Shared, Trust};
pub use self::wire::Net;
use self::wire::{Credentials, Endpoint};

/// Who a node is and whom it trusts.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Peers of another one are refused.
    pub cluster: ClusterId,
    /// Told to peers.
    pub lineage: Lineage,
    /// Must be the one in the certificate.
    pub uid: NodeUid,
    /// Of this run.
    pub boot: BootId,
    /// Which start of the node's data directory this run is.
    pub start: Start,
    /// Certificate and key of this node.
    pub identity: TlsIdentity,
    /// PEM of every authority whose certificates are trusted; at least one.
    pub authorities: Vec<String>,
}

/// Another node, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddr {
    /// Which node.
    pub uid: NodeUid,
    /// Where.
    pub addr: SocketAddr,
}

/// A node's end of all its connections. Clones are the same transport; it works until
/// [`Transport::close`].
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

impl Transport {
    /// Listens, and serves from now on. Must be called on the runtime that connections shall live
    /// on; the other functions may be called from any.
    pub fn bind(config: TransportConfig, service: Arc<dyn Service>) -> Result<Transport, BindError> {
        Self::bind_speaking(Speaks::THIS, config, service)
    }

    /// The same for a node that says it speaks no more than this.
    pub fn bind_speaking(
        speaks: Speaks,
        config: TransportConfig,
        service: Arc<dyn Service>,
    ) -> Result<Transport, BindError> {
        Self::bind_on(&Net::Udp, speaks, config, service)
    }

    /// The same on a network of choice.
    pub fn bind_on(
        net: &Net,
        speaks: Speaks,
        config: TransportConfig,
        service: Arc<dyn Service>,
    ) -> Result<Transport, BindError> {
        let credentials = Credentials::new(net, &config.identity, &config.authorities)?;
        let tuning = tuning::transport();
        let listen = |source| BindError::Listen { addr: config.listen, source };
        let server = credentials.server(tuning.clone());
        let endpoint = Endpoint::bind(net, config.listen, Some(server)).map_err(listen)?;
        let shared = Arc::new(Shared {
            local_addr: endpoint.local_addr().map_err(listen)?,
            endpoint: Some(endpoint.clone()).into(),
            socket: endpoint.socket(),
            net: net.clone(),
            runtime: tokio::runtime::Handle::current(),
            service,
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
            joiners: Arc::new(Semaphore::new(limits::MAX_JOINERS)),
            admins: Default::default(),
            peers: Default::default(),
            banned: Default::default(),
        });
        annulus_ground::spawn(accept::accept(shared.clone(), endpoint));
        Ok(Transport { shared })
    }

    /// Tells whether anybody still has this: for whoever looks for leaks.
    pub fn remains(&self) -> Weak<dyn Any + Send + Sync> {
        let held: Arc<dyn Any + Send + Sync> = self.shared.clone();
        Arc::downgrade(&held)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr
    }

    /// One request, one answer. Dials when there is no connection; the first call to a peer waits
    /// for that. A call to this very node goes to its own service without a connection.
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
            return self.call_here(lane, kind, payload, deadline).await;
        }
        loop {
            let link = self.link(peer, deadline).await?;
            // None: it ended in between and nothing was sent; there may be another by now.
            if let Some(result) = link.call(lane, kind, payload.clone(), deadline).await {
                return result;
            }
            self.wait_replaced(&link, deadline).await?;
        }
    }

    async fn call_here(
        &self,
        lane: Lane,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if kind == kind::ECHO {
            return Ok(payload);
        }
        let (responder, answer) = Responder::local();
        let from = PeerIdentity::Node { uid: self.shared.uid, boot: self.shared.boot };
        self.shared.service.request(Request { from, lane, kind, payload, deadline, responder });
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(CallError::NoAnswer),
            Err(_) => Err(CallError::Deadline { sent: true }),
        }
    }

    /// Opens a bulk stream to a node, behind the lanes in priority. Waits for a place when
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

    /// Sends a datagram, or drops it: where there is no connection it is dialled once, in the
    /// background, for the datagrams to come. Never waits, and never says what became of it.
    pub fn send_datagram(&self, peer: &PeerAddr, bytes: Bytes) {
        if peer.uid == self.shared.uid || self.shared.is_banned(peer.uid) {
            return;
        }
        let entry = self.shared.peer(peer.uid);
        match entry.link() {
            // An error: the connection ends just now, or the peer reads no datagrams.
            Some(link) => drop(link.connection.send_datagram(bytes)),
            None => entry.knock(&self.shared, peer.addr),
        }
    }

    /// Connects to whichever node of this cluster answers at an address, and says which: for a node
    /// that knows where somebody listens and not who. Does nothing if there is a connection to it already.
    /// The error is for people; nothing is left open. Bounded by [`limits::DIAL_LIMIT`].
    pub async fn meet(&self, addr: SocketAddr) -> Result<NodeUid, String> {
        let shared = self.shared.clone();
        // On the network's runtime: the connection lives there.
        let met =
            annulus_ground::spawn_on(
                &self.shared.runtime,
                async move { dial::dial(&shared, None, addr).await },
            );
        met.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn link(&self, peer: &PeerAddr, deadline: Instant) -> Result<Arc<Link>, CallError> {
        let entry = self.shared.peer(peer.uid);
        match entry.link() {
            Some(link) => Ok(link),
            None if self.shared.is_banned(peer.uid) => {
                Err(CallError::Unreachable("the node was removed from the cluster".to_owned()))
            }
            None => entry.connected(&self.shared, peer.addr, deadline).await,
        }
    }

    /// A link that refuses calls is about to be replaced in the table.
    async fn wait_replaced(&self, link: &Arc<Link>, deadline: Instant) -> Result<(), CallError> {
        let peer = self.shared.peer(link.uid);
        tokio::time::timeout_at(deadline, peer.replaced(link))
            .await
            .map_err(|_| CallError::Deadline { sent: false })
    }

    /// Connected, and heard from within [`limits::SILENCE_LIMIT`]?
    pub fn is_up(&self, uid: NodeUid) -> bool {
        uid == self.shared.uid || self.shared.peers.read().get(&uid).is_some_and(|peer| peer.link().is_some())
    }

    /// Dials a peer that was away again at once, and has calls wait for that dial. For news from elsewhere that
    /// the peer is there; does nothing where it has a connection.
    pub fn hurry(&self, uid: NodeUid) {
        if let Some(peer) = self.shared.peers.read().get(&uid) {
            peer.hurry();
        }
    }

    /// Where a connected peer is.
    pub fn peer_addr(&self, uid: NodeUid) -> Option<PeerAddr> {
        let addr = self.shared.peers.read().get(&uid)?.link()?.connection.remote_address();
        Some(PeerAddr { uid, addr })
    }

    /// Why the last attempt to reach a peer failed, if there is no connection now.
    pub fn why_down(&self, uid: NodeUid) -> Option<String> {
        let peer = self.shared.peers.read().get(&uid).cloned()?;
        peer.failure()
    }

    /// What a connected peer said of its lineage and which of its runs it is.
    pub fn peer_info(&self, uid: NodeUid) -> Option<(Lineage, BootId)> {
        let link = self.shared.peers.read().get(&uid)?.link()?;
        Some((link.lineage, link.boot))
    }

    /// What a peer said at its last connection that it speaks; none where there was none since
    /// this node's start.
    pub fn peer_speaks(&self, uid: NodeUid) -> Option<Speaks> {
        if uid == self.shared.uid {
            return Some(self.shared.speaks);
        }
        let peer = self.shared.peers.read().get(&uid).cloned();
        peer?.speaks()
    }

    /// The cluster is at this state level: nodes that do not speak it are refused and disconnected.
    pub fn set_level(&self, level: u32) {
        *self.shared.level.lock() = Some(level);
        let peers: Vec<_> = self.shared.peers.read().values().cloned().collect();
        for link in peers.iter().flat_map(|peer| peer.links()) {
            if let Err((close, reason)) = hello::check_level(link.uid, link.speaks.levels, Some(level)) {
                tracing::warn!(peer = %link.uid, reason, "disconnected");
                link.note_end(&reason);
                close.close(&link.connection, &reason);
            }
        }
    }

    /// What new connections are told.
    pub fn set_lineage(&self, lineage: Lineage) {
        *self.shared.lineage.lock() = lineage;
    }

    /// From now on these authorities are trusted; peers whose certificate leads to none of them
    /// are disconnected. On an error nothing changes.
    pub fn set_authorities(&self, authorities: Vec<String>) -> Result<(), IdentityError> {
        let mut trust = self.shared.trust.lock();
        self.renew(&mut trust, |trust| trust.authorities = authorities)
    }

    /// From now on new connections show this certificate. On an error nothing changes.
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
        let config = credentials.server(self.shared.tuning.clone());
        if let Some(endpoint) = self.shared.endpoint() {
            endpoint.set_server_config(config);
        }
        self.shared.credentials.store(credentials.clone());
        *trust = renewed;
        let reason = "the authority is trusted no more";
        self.disconnect(|link| !credentials.trusts(&link.proof), close::Close::Banned, reason);
        Ok(())
    }

    /// From now on these nodes (and no others) are refused and disconnected: they were removed.
    pub fn set_banned(&self, banned: HashSet<NodeUid>) {
        *self.shared.banned.write() = banned;
        let reason = "this node was removed from the cluster";
        self.disconnect(|link| self.shared.is_banned(link.uid), close::Close::Removed, reason);
    }

    fn disconnect(&self, which: impl Fn(&Link) -> bool, why: close::Close, reason: &str) {
        let peers: Vec<_> = self.shared.peers.read().values().cloned().collect();
        for link in peers.iter().flat_map(|peer| peer.links()).filter(|link| which(link)) {
            why.close(&link.connection, reason);
        }
    }

    /// Ends all connections (peers learn it at once) and refuses new ones, for all clones. Calls in
    /// flight end as [`CallError::Lost`]. The port is free when the last packets have been seen
    /// off: normally when this returns, which is after [`limits::CLOSE_LIMIT`] at the latest.
    pub async fn close(&self) {
        let Some(endpoint) = self.shared.endpoint.write().take() else { return };
        endpoint.close(VarInt::from_u32(close::Close::Done as u32), b"the node was stopped");
        let _ = timeout(limits::CLOSE_LIMIT, endpoint.wait_idle()).await;
    }
}
