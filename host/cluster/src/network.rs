//! Raft over the transport's control lane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::state::Lineage;
use annulus_core::version::Speaks;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::EmptyNode;
use openraft::error::{
    InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::addresses::AddressBook;
use super::contact::LeaderContact;
use super::messages::OfLineage;
use super::raft::RaftTypes;
use annulus_core::codec;
use annulus_transport::limits::MAX_FRAME;
use annulus_transport::{CallError, Lane, PeerAddr, Transport, kind};

/// Pause before a peer that could not be reached is tried again. Short: the transport dials in
/// the background and refuses at once while nobody answers.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(100);

/// How the control plane talks to another node. The transport is one; tests have another.
pub trait ControlNetwork: Send + Sync + 'static {
    /// One request, one answer, on the control lane.
    fn call(
        &self,
        peer: PeerAddr,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// What a peer said last that it speaks, if it said anything since this node's start.
    fn speaks(&self, peer: NodeUid) -> Option<Speaks>;

    /// Connects to whichever node of this cluster answers at an address, and says which. The error is for
    /// people.
    fn meet(&self, addr: SocketAddr) -> BoxFuture<'static, Result<NodeUid, String>> {
        Box::pin(async move { Err(format!("there is no way to {addr}")) })
    }

    /// Sends a datagram of the failure detector, or drops it.
    fn send_datagram(&self, _peer: &PeerAddr, _bytes: Bytes) {}

    /// Is there a connection to this node, and does it say anything?
    fn is_up(&self, _uid: NodeUid) -> bool {
        false
    }

    /// How to reach a node that is connected to this one; no table has to have it.
    fn linked(&self, _uid: NodeUid) -> Option<PeerAddr> {
        None
    }

    /// Tells the network that a node answers again, so that it dials one without a connection at once.
    fn is_back(&self, _uid: NodeUid) {}
}

/// The transport, until it is taken away: a handle of the control plane that somebody keeps must
/// not keep the node's port.
pub struct TransportLink {
    transport: Mutex<Option<Transport>>,
}

impl TransportLink {
    /// The control plane's way over a transport.
    pub fn new(transport: Transport) -> Self {
        Self { transport: Mutex::new(Some(transport)) }
    }

    /// Lets go of the transport. Further calls reach nobody.
    pub fn detach(&self) {
        self.transport.lock().take();
    }
}

impl ControlNetwork for TransportLink {
    fn call(
        &self,
        peer: PeerAddr,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let transport = self.transport.lock().clone();
        Box::pin(async move {
            match transport {
                Some(transport) => transport.call(&peer, Lane::Control, kind, payload, deadline).await,
                None => Err(CallError::Unreachable("this node has stopped".into())),
            }
        })
    }

    fn speaks(&self, peer: NodeUid) -> Option<Speaks> {
        self.transport.lock().as_ref()?.peer_speaks(peer)
    }

    fn meet(&self, addr: SocketAddr) -> BoxFuture<'static, Result<NodeUid, String>> {
        let transport = self.transport.lock().clone();
        Box::pin(async move {
            match transport {
                Some(transport) => transport.meet(addr).await,
                None => Err("this node has stopped".to_owned()),
            }
        })
    }

    fn send_datagram(&self, peer: &PeerAddr, bytes: Bytes) {
        if let Some(transport) = &*self.transport.lock() {
            transport.send_datagram(peer, bytes);
        }
    }

    fn is_up(&self, uid: NodeUid) -> bool {
        self.transport.lock().as_ref().is_some_and(|transport| transport.is_up(uid))
    }

    fn linked(&self, uid: NodeUid) -> Option<PeerAddr> {
        self.transport.lock().as_ref()?.linked(uid)
    }

    fn is_back(&self, uid: NodeUid) {
        if let Some(transport) = &*self.transport.lock() {
            transport.hurry(uid);
        }
    }
}

/// Makes connections for Raft.
#[derive(Clone)]
pub struct RaftLinks {
    /// The way to the peers.
    pub network: Arc<dyn ControlNetwork>,
    /// Their addresses.
    pub book: Arc<AddressBook>,
    /// What is noted of their answers.
    pub contact: Arc<LeaderContact>,
    /// Whose Raft this is.
    pub lineage: Lineage,
}

impl RaftNetworkFactory<RaftTypes> for RaftLinks {
    type Network = RaftLink;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> RaftLink {
        RaftLink { target, links: self.clone() }
    }
}

/// Raft's way to one peer.
pub struct RaftLink {
    target: u64,
    links: RaftLinks,
}

/// What a peer's Raft answers: its own result, as it is.
type Remote<T, E> = Result<T, RaftError<u64, E>>;
/// Neither sent for certain nor not: openraft tries again at once.
fn lost<E: std::error::Error>(error: impl std::error::Error + 'static) -> RpcError<E> {
    RPCError::Network(NetworkError::new(&error))
}

// openraft's error is as large as it is, and every call of its trait returns it anyway.
#[allow(clippy::result_large_err)]
fn encode<T: Serialize, E: std::error::Error>(message: &T) -> Result<Vec<u8>, RpcError<E>> {
    codec::encode(message).map_err(lost)
}

type RpcError<E> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

impl RaftLink {
    async fn call<A, E>(&self, kind: u8, payload: Vec<u8>, option: &RPCOption) -> Result<A, RpcError<E>>
    where
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let Some(peer) = self.links.book.peer(NodeId(self.target)) else {
            let error = CallError::Unreachable(format!("no address of node {} is known", self.target));
            return Err(RPCError::Unreachable(Unreachable::new(&error)));
        };
        let deadline = Instant::now() + option.hard_ttl();
        let (kind, payload) = match self.links.lineage {
            lineage if lineage == Lineage::default() => (kind, payload),
            lineage => (kind::OF_LINEAGE, encode(&OfLineage { lineage, kind, payload })?),
        };
        match self.links.network.call(peer, kind, payload.into(), deadline).await {
            Ok(answer) => match codec::decode::<Remote<A, E>>(&answer) {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(RPCError::RemoteError(RemoteError::new(self.target, error))),
                Err(error) => Err(lost(error)),
            },
            // Nothing was sent: openraft pauses after these.
            Err(
                error @ (CallError::Unreachable(_)
                | CallError::Overloaded
                | CallError::Deadline { sent: false }),
            ) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(error) => Err(lost(error)),
        }
    }
}

impl RaftNetwork<RaftTypes> for RaftLink {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError<openraft::error::Infallible>> {
        let sent = Instant::now();
        let payload = encode(&rpc)?;
        if payload.len() > MAX_FRAME && rpc.entries.len() > 1 {
            return Err(RPCError::PayloadTooLarge(PayloadTooLarge::new_entries_hint(1)));
        }
        let answer = self.call(kind::RAFT_APPEND, payload, &option).await?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.links.contact.heard_from_follower(self.target, sent);
        }
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<RaftTypes>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<InstallSnapshotError>> {
        self.call(kind::RAFT_SNAPSHOT, encode(&rpc)?, &option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError<openraft::error::Infallible>> {
        self.call(kind::RAFT_VOTE, encode(&rpc)?, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}
