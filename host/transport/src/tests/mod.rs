//! The transport from outside: two or more of them in one process, over loopback.
#![allow(clippy::unwrap_used)]

mod bulk;
mod calls;
mod datagrams;
mod hostile;
mod identity;
mod lifecycle;
mod strangers;
mod versions;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{BootId, ClusterId, NodeUid, Start};
use annulus_core::state::Lineage;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::identity::{Authority, TlsIdentity};
use super::*;

/// Answers with the payload reversed.
const REVERSE: u8 = 100;
/// Answers with the payload as it is, through the service.
const MIRROR: u8 = 99;
/// Keeps the responder in `held`.
const HOLD: u8 = 101;
/// Drops the responder.
const DROP: u8 = 102;

pub(super) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A cluster's authority: what nodes are made from.
pub(super) struct World {
    pub authority: Authority,
}

impl World {
    pub(super) fn new() -> Self {
        Self { authority: Authority::create(ClusterId(rand::random())).unwrap() }
    }

    pub(super) fn config(&self, uid: NodeUid) -> TransportConfig {
        TransportConfig {
            listen: LOOPBACK,
            cluster: self.authority.cluster,
            lineage: Lineage::default(),
            uid,
            boot: BootId(rand::random()),
            start: Start { number: 1, id: rand::random() },
            identity: self.authority.sign_node(uid).unwrap(),
            authorities: vec![self.authority.cert_pem.clone()],
        }
    }

    pub(super) fn admin(&self) -> TlsIdentity {
        self.authority.sign_admin().unwrap()
    }

    pub(super) fn node(&self) -> Node {
        Node::start(self.config(uid()))
    }
}

pub(super) fn uid() -> NodeUid {
    NodeUid(rand::random())
}

/// What a bulk stream came with.
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
    /// The peers' start whose disk was found to be the newest.
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

    fn bulk(&self, from: PeerIdentity, kind: u8, header: Bytes, stream: BulkStream) {
        let _ = self.bulk.send((from, kind, header, stream));
    }

    fn datagram(&self, from: NodeUid, bytes: Bytes) {
        let _ = self.datagrams.send((from, bytes));
    }

    fn connected(&self, peer: NodeUid) {
        let _ = self.connected.send(peer);
    }

    fn outdated(&self, _: NodeUid, start: Start) -> Option<String> {
        let newest = *self.newest.lock();
        newest.filter(|newest| newest.number > start.number).map(|_| "its disk is older".to_owned())
    }

    fn superseded(&self, why: &str) {
        let _ = self.superseded.send(why.to_owned());
    }

    fn runs_twice(&self, why: &str) {
        let _ = self.twins.send(why.to_owned());
    }

    fn removed(&self) {
        self.removed.notify_one();
    }

    fn outside(&self) {
        self.outside.notify_one();
    }

    fn rival(&self, peer: NodeUid) {
        let _ = self.rivals.send(peer);
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
    pub(super) fn start(config: TransportConfig) -> Node {
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
        let transport = Transport::bind(config.clone(), service.clone()).unwrap();
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

    /// Calls until it succeeds: for what has to come back by itself.
    pub(super) async fn call_until_answered(&self, to: &PeerAddr) {
        within("an answer", async {
            while self.call(to, ECHO, b"there?").await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    /// Waits until a request is held.
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

/// A test that hangs says where.
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}
