//! Tests of whole transports: two or more in one process, over loopback and over an in-memory network.
#![allow(clippy::unwrap_used)]

mod bulk;
mod calls;
mod datagrams;
mod hostile;
mod identity;
mod inbound;
mod lifecycle;
mod seeds;
mod strangers;
mod versions;
mod weather;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use annulus_core::ids::{BootId, ClusterId, NodeUid, Start};
use annulus_core::state::Lineage;
use annulus_ground::{Scope, ScopeId};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::client::Client;
use super::identity::{Authority, TlsIdentity};
use super::memory::{Calm, Network};
use super::*;

/// Generate tests from functions that take a [`World`], one per network. They cover what both networks have
/// in common.
macro_rules! on_both_nets {
    ($($name:ident,)*) => {
        mod udp {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(super::World::new()).await;
                }
            )*
        }
        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(super::World::in_memory()).await;
                }
            )*
        }
    };
}
use on_both_nets;

/// Responds with the payload reversed.
const REVERSE: u8 = 100;
/// Responds with the payload unchanged, through the service.
const MIRROR: u8 = 99;
/// Keeps the responder in `held`.
const HOLD: u8 = 101;
/// Drops the responder.
const DROP: u8 = 102;

pub(super) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A cluster's authority and its network.
pub(super) struct World {
    pub authority: Authority,
    ground: Ground,
}

#[derive(Clone)]
enum Ground {
    Udp,
    /// The scope in which identities are created.
    Memory(Network, Scope),
}

impl Ground {
    fn make<T>(&self, make: impl FnOnce() -> T) -> T {
        match self {
            Ground::Udp => make(),
            Ground::Memory(_, scope) => scope.enter(make),
        }
    }
}

/// Random numbers for tests.
#[derive(Default)]
struct Counts(AtomicU64);

impl annulus_ground::World for Counts {
    fn random(&self, _: ScopeId) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn wall(&self, _: ScopeId) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
    fn panicked(&self, _: ScopeId, why: &str) {
        panic!("{why}");
    }
}

/// An address that never responds.
pub(super) struct Silent {
    pub addr: SocketAddr,
    _socket: Option<UdpSocket>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::on(Ground::Udp, ClusterId(rand::random()))
    }

    pub(super) fn in_memory() -> Self {
        let scope = Scope::new(ScopeId(0), Arc::new(Counts::default()));
        Self::of(Network::new(Arc::new(Calm)), scope)
    }

    /// Create a world on a network, with identities from a scope's random numbers.
    pub(super) fn of(network: Network, scope: Scope) -> Self {
        Self::on(Ground::Memory(network, scope.clone()), ClusterId(scope.enter(annulus_ground::random)))
    }

    fn on(ground: Ground, cluster: ClusterId) -> Self {
        Self { authority: ground.make(|| Authority::create(cluster)).unwrap(), ground }
    }

    /// Create another cluster on the same network.
    pub(super) fn another(&self) -> Self {
        Self::on(self.ground.clone(), ClusterId(rand::random()))
    }

    /// Create the same cluster with another authority.
    pub(super) fn usurped(&self) -> Self {
        Self::on(self.ground.clone(), self.authority.cluster)
    }

    /// Create keys and certificates of the network's kind.
    pub(super) fn make<T>(&self, make: impl FnOnce() -> T) -> T {
        self.ground.make(make)
    }

    /// Return the network of a machine.
    pub(super) fn net(&self, ip: IpAddr) -> Net {
        match &self.ground {
            Ground::Udp => Net::Udp,
            Ground::Memory(network, _) => Net::Memory(network.host(ip)),
        }
    }

    /// Return any port of this machine, or of an unused in-memory host.
    pub(super) fn listen(&self) -> SocketAddr {
        static MACHINES: AtomicU64 = AtomicU64::new(1);
        match self.ground {
            Ground::Udp => LOOPBACK,
            Ground::Memory(..) => {
                let number = MACHINES.fetch_add(1, Ordering::Relaxed);
                let [.., a, b] = number.to_be_bytes();
                (Ipv4Addr::new(10, 0, a, b), 0).into()
            }
        }
    }

    pub(super) fn start(&self, config: TransportConfig) -> Node {
        Node::start(&self.net(config.listen.ip()), config)
    }

    pub(super) fn silent(&self) -> Silent {
        match self.ground {
            Ground::Udp => {
                let socket = UdpSocket::bind(LOOPBACK).unwrap();
                Silent { addr: socket.local_addr().unwrap(), _socket: Some(socket) }
            }
            Ground::Memory(..) => Silent { addr: (self.listen().ip(), 7).into(), _socket: None },
        }
    }

    /// Wait until the address can be bound.
    pub(super) async fn free(&self, addr: SocketAddr) {
        let is_free = || match &self.ground {
            Ground::Udp => UdpSocket::bind(addr).is_ok(),
            Ground::Memory(network, _) => network.is_free(addr),
        };
        within("the port to be free", async {
            while !is_free() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Create a client on a separate host that trusts this cluster's authority.
    pub(super) async fn client(
        &self,
        to: &Node,
        identity: Option<TlsIdentity>,
        limit: Duration,
    ) -> Result<Client, ConnectError> {
        self.client_of(to.config.listen, identity, &self.authority, limit).await
    }

    pub(super) async fn client_of(
        &self,
        to: SocketAddr,
        identity: Option<TlsIdentity>,
        authority: &Authority,
        limit: Duration,
    ) -> Result<Client, ConnectError> {
        let net = self.net(self.listen().ip());
        Client::connect_on(&net, to, identity, vec![authority.cert_pem.clone()], limit).await
    }

    pub(super) fn sign_node(&self, uid: NodeUid) -> TlsIdentity {
        self.make(|| self.authority.sign_node(uid)).unwrap()
    }

    pub(super) fn config(&self, uid: NodeUid) -> TransportConfig {
        TransportConfig {
            listen: self.listen(),
            cluster: self.authority.cluster,
            lineage: Lineage::default(),
            uid,
            boot: BootId(rand::random()),
            start: Start { number: 1, id: rand::random() },
            identity: self.sign_node(uid),
            authorities: vec![self.authority.cert_pem.clone()],
        }
    }

    pub(super) fn admin(&self) -> TlsIdentity {
        self.make(|| self.authority.sign_admin()).unwrap()
    }

    pub(super) fn node(&self) -> Node {
        self.start(self.config(uid()))
    }
}

pub(super) fn uid() -> NodeUid {
    NodeUid(rand::random())
}

/// An opened bulk stream with its metadata.
pub(super) type Opened = (PeerIdentity, u8, Bytes, BulkStream);

pub(super) struct Recorder {
    held: Mutex<Vec<Responder>>,
    held_changed: tokio::sync::Notify,
    requests: Mutex<Vec<(PeerIdentity, Lane, u8)>>,
    bulk: mpsc::UnboundedSender<Opened>,
    superseded: mpsc::UnboundedSender<String>,
    outside: tokio::sync::Notify,
    rivals: mpsc::UnboundedSender<NodeUid>,
    twins: mpsc::UnboundedSender<String>,
    /// The start of the peer whose disk is known to be the newest.
    newest: Mutex<Option<Start>>,
    removed: tokio::sync::Notify,
    datagrams: mpsc::UnboundedSender<(NodeUid, Bytes)>,
    connected: mpsc::UnboundedSender<NodeUid>,
}

impl Service for Recorder {
    fn request(&self, request: Request) {
        self.requests.lock().push((request.from, request.lane, request.kind));
        match request.kind {
            REVERSE => request.responder.send(request.payload.iter().rev().copied().collect()),
            MIRROR => request.responder.send(request.payload),
            HOLD => {
                self.held.lock().push(request.responder);
                self.held_changed.notify_one();
            }
            _ => {}
        }
    }

    fn outdated(&self, _: NodeUid, start: Start) -> Option<String> {
        let newest = *self.newest.lock();
        newest.filter(|newest| newest.number > start.number).map(|_| "its disk is older".to_owned())
    }
}

impl Recorder {
    /// Record events until the transport is gone.
    async fn record(self: Arc<Self>, mut inbound: Inbound) {
        while let Some(event) = inbound.next().await {
            match event {
                Event::Request(request) => self.request(request),
                Event::Stream { from, kind, header, stream } => {
                    let _ = self.bulk.send((from, kind, header, stream));
                }
                Event::Datagram { from, bytes } => drop(self.datagrams.send((from, bytes))),
                Event::Connected(peer) => drop(self.connected.send(peer)),
                Event::NewerLineage { .. } => {}
                Event::Superseded { why } => drop(self.superseded.send(why)),
                Event::RunsTwice { why, .. } => drop(self.twins.send(why)),
                Event::Removed => self.removed.notify_one(),
                Event::Outside => self.outside.notify_one(),
                Event::Rival(peer) => drop(self.rivals.send(peer)),
            }
        }
    }
}

pub(super) struct Node {
    pub transport: Transport,
    pub service: Arc<Recorder>,
    pub bulk: mpsc::UnboundedReceiver<Opened>,
    pub datagrams: mpsc::UnboundedReceiver<(NodeUid, Bytes)>,
    pub connected: mpsc::UnboundedReceiver<NodeUid>,
    pub superseded: mpsc::UnboundedReceiver<String>,
    pub twins: mpsc::UnboundedReceiver<String>,
    pub rivals: mpsc::UnboundedReceiver<NodeUid>,
    pub config: TransportConfig,
}

impl Node {
    fn start(net: &Net, config: TransportConfig) -> Node {
        let (sender, bulk) = mpsc::unbounded_channel();
        let (datagram_sender, datagrams) = mpsc::unbounded_channel();
        let (connected_sender, connected) = mpsc::unbounded_channel();
        let (superseded_sender, superseded) = mpsc::unbounded_channel();
        let (twin_sender, twins) = mpsc::unbounded_channel();
        let (rival_sender, rivals) = mpsc::unbounded_channel();
        let service = Arc::new(Recorder {
            held: Mutex::default(),
            held_changed: Default::default(),
            requests: Mutex::default(),
            bulk: sender,
            superseded: superseded_sender,
            twins: twin_sender,
            newest: Mutex::default(),
            removed: Default::default(),
            outside: Default::default(),
            rivals: rival_sender,
            datagrams: datagram_sender,
            connected: connected_sender,
        });
        let direct: Arc<dyn Service> = service.clone();
        let (transport, inbound) =
            Transport::bind_on(net, Speaks::THIS, config.clone(), Arc::downgrade(&direct)).unwrap();
        annulus_ground::spawn(service.clone().record(inbound));
        let config = TransportConfig { listen: transport.local_addr(), ..config };
        Node { transport, service, bulk, datagrams, connected, superseded, twins, rivals, config }
    }

    pub(super) fn uid(&self) -> NodeUid {
        self.config.uid
    }

    pub(super) fn addr(&self) -> PeerAddr {
        PeerAddr { uid: self.config.uid, addr: self.config.listen }
    }

    pub(super) async fn call(&self, to: &PeerAddr, kind: u8, payload: &[u8]) -> Result<Bytes, CallError> {
        self.transport.call(to, Lane::Data, kind, Bytes::copy_from_slice(payload), soon()).await
    }

    /// Call until a call succeeds.
    pub(super) async fn call_until_answered(&self, to: &PeerAddr) {
        within("an answer", async {
            while self.call(to, ECHO, b"there?").await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    /// Wait until a request is held.
    pub(super) async fn held(&self) -> Responder {
        within("a held request", async {
            loop {
                if let Some(responder) = self.service.held.lock().pop() {
                    return responder;
                }
                self.service.held_changed.notified().await;
            }
        })
        .await
    }
}

use super::kind::ECHO;

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Run a future with a limit and name it in the failure.
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}
