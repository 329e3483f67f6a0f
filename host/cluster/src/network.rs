//! Raft's network, on the transport's control lane.

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

/// Pause before Raft calls an unreachable peer again. It can be short: the transport dials the peer in the
/// background, and calls fail immediately until it is connected.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(100);

/// The control plane's network: the [`Transport`], or a substitute in tests.
pub trait ControlNetwork: Send + Sync + 'static {
    /// Send one request on the control lane and wait for its response.
    fn call(
        &self,
        peer: PeerAddr,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// Return the versions from the peer's last hello; `None` if the peer has not connected since this node started.
    fn speaks(&self, peer: NodeUid) -> Option<Speaks>;

    /// Connect to the node of this cluster that listens at `addr`, and return its uid. The error is for
    /// display only.
    fn meet(&self, addr: SocketAddr) -> BoxFuture<'static, Result<NodeUid, String>> {
        Box::pin(
            async move { Err(format!("this network cannot connect to an address without a uid: {addr}")) },
        )
    }

    /// Send a datagram of the failure detector. It may be dropped.
    fn send_datagram(&self, _peer: &PeerAddr, _bytes: Bytes) {}

    /// Return true if the node is connected and has not fallen silent.
    fn is_up(&self, _uid: NodeUid) -> bool {
        false
    }

    /// Return the remote address of a node if it is connected, even if it is not a member of the cluster.
    fn linked(&self, _uid: NodeUid) -> Option<PeerAddr> {
        None
    }

    /// Report that a node responds again. If it was lost, it is dialled immediately.
    fn is_back(&self, _uid: NodeUid) {}
}

impl ControlNetwork for Transport {
    fn call(
        &self,
        peer: PeerAddr,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let transport = self.clone();
        Box::pin(async move { transport.call(&peer, Lane::Control, kind, payload, deadline).await })
    }

    fn speaks(&self, peer: NodeUid) -> Option<Speaks> {
        self.peer_speaks(peer)
    }

    fn meet(&self, addr: SocketAddr) -> BoxFuture<'static, Result<NodeUid, String>> {
        let transport = self.clone();
        Box::pin(async move { transport.meet(addr).await })
    }

    fn send_datagram(&self, peer: &PeerAddr, bytes: Bytes) {
        self.send_datagram(peer, bytes);
    }

    fn is_up(&self, uid: NodeUid) -> bool {
        self.is_up(uid)
    }

    fn linked(&self, uid: NodeUid) -> Option<PeerAddr> {
        self.linked(uid)
    }

    fn is_back(&self, uid: NodeUid) {
        self.hurry(uid);
    }
}

/// Creates a [`RaftLink`] for each peer of one Raft instance.
#[derive(Clone)]
pub struct RaftLinks {
    /// The network.
    pub network: Arc<dyn ControlNetwork>,
    /// Addresses of the peers.
    pub book: Arc<AddressBook>,
    /// Records when followers responded.
    pub contact: Arc<LeaderContact>,
    /// The lineage of this Raft instance.
    pub lineage: Lineage,
}

impl RaftNetworkFactory<RaftTypes> for RaftLinks {
    type Network = RaftLink;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> RaftLink {
        RaftLink { target, links: self.clone() }
    }
}

/// Raft's client for one peer. It does not hold a connection.
pub struct RaftLink {
    target: u64,
    links: RaftLinks,
}

/// The reply of the peer's Raft, as encoded on the wire.
type Remote<T, E> = Result<T, RaftError<u64, E>>;

/// Convert an error after which the peer may have received the request. openraft retries without a pause.
fn lost<E: std::error::Error>(error: impl std::error::Error + 'static) -> RpcError<E> {
    RPCError::Network(NetworkError::new(&error))
}

// openraft defines the large error type, and its network trait requires it as the return type.
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
            // The peer did not execute the request. openraft pauses before it retries.
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
