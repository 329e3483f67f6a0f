//! Calls to other nodes on the control lane.

use std::sync::Arc;

use annulus_core::ids::NodeId;
use annulus_transport::CallError;
use bytes::Bytes;
use tokio::time::Instant;

use super::addresses::AddressBook;
use super::network::ControlNetwork;

/// The other nodes: their addresses, and the network to reach them by. Clones share both.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) book: Arc<AddressBook>,
    pub(super) network: Arc<dyn ControlNetwork>,
}

impl Peers {
    /// Send one request to a node and wait for its reply.
    pub(super) async fn call(
        &self,
        node: NodeId,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let peer = self.book.peer(node);
        let peer =
            peer.ok_or_else(|| CallError::Unreachable(format!("no address of node {node} is known")))?;
        self.network.call(peer, kind, payload, deadline).await
    }
}
