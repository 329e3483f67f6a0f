//! Requests to other replicas.

use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::item::{Item, RangeDigest};
use annulus_core::wire::replica::{ReplicaAnswer, ReplicaAsk, ReplicaCall};
use annulus_transport::{CallError, Lane, kind};
use annulus_vnode::{Answer, Control, KeyState, ReplicaId, VnodeHandle};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Replicas;

/// The pause before a request that got no answer is sent again. All requests to replicas may be repeated.
const AGAIN: Duration = Duration::from_millis(100);
/// Number of attempts of a request.
const TRIES: usize = 3;

impl Replicas {
    /// Return the frame of a request.
    pub(super) fn frame(id: ReplicaId, version: u64, ask: ReplicaAsk<'_>) -> Bytes {
        ReplicaCall { module: id.module, partition: id.partition, version, ask }.encode().into()
    }

    /// Send a request to a replica and return its answer, or the reason why there is none.
    pub(super) async fn ask(
        &self,
        node: NodeId,
        frame: Bytes,
        deadline: Instant,
    ) -> Result<ReplicaAnswer, String> {
        let mut tries = 0;
        loop {
            let view = self.inner.cluster.view();
            let peer = view.peer(node).ok_or("the node has no address")?;
            let call = self.inner.transport.call(&peer, Lane::Data, kind::REPLICA, frame.clone(), deadline);
            let error = match call.await {
                Ok(answer) => return ReplicaAnswer::decode(&answer).map_err(|error| error.to_string()),
                Err(error) => error,
            };
            tries += 1;
            let again = match error {
                // Of two connections that two nodes have opened at once, one closes with the requests on it.
                CallError::Lost(_) | CallError::NoAnswer | CallError::Overloaded => true,
                CallError::Unreachable(_) | CallError::Deadline { .. } | CallError::TooLarge { .. } => false,
            };
            if !again || tries == TRIES || Instant::now() + AGAIN >= deadline {
                return Err(error.to_string());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Merge items into this node's own replica, and wait until they are durable.
    pub(super) async fn merge_here(
        &self,
        id: ReplicaId,
        items: Vec<Item>,
        deadline: Instant,
    ) -> Result<(), String> {
        self.ask_here(id, deadline, |answer| Control::Merge(items, answer)).await?
    }

    /// Return the state of a key at this node's own replica, once it is durable.
    pub(super) async fn key_here(
        &self,
        id: ReplicaId,
        key: &[u8],
        with_items: bool,
        deadline: Instant,
    ) -> Result<KeyState, String> {
        let ask = |answer: Answer<_>| Control::TellKey { key: key.to_vec(), with_items, answer };
        let told = self.ask_here(id, deadline, ask).await?;
        told?.ok_or_else(|| "the store of this replica is not complete".to_owned())
    }

    /// Return the digest of the items of a key at this node's own replica.
    pub(super) async fn digest_here(
        &self,
        id: ReplicaId,
        key: &[u8],
        deadline: Instant,
    ) -> Result<RangeDigest, String> {
        if let Some(digest) = self.inner.master.digest_in_memory(id, key) {
            return Ok(digest);
        }
        self.key_here(id, key, false, deadline).await.map(|state| state.digest)
    }

    /// Ask the vnode of this node's own replica, and return its answer.
    pub(super) async fn ask_here<T>(
        &self,
        id: ReplicaId,
        deadline: Instant,
        ask: impl FnOnce(Answer<T>) -> Control,
    ) -> Result<T, String>
    where
        T: Send + 'static,
    {
        let replica = self.inner.master.replica(id, 0);
        let (vnode, _) = replica.map_err(|_| "this node does not keep the partition".to_owned())?;
        match timeout_at(deadline, ask_vnode(&vnode, ask)).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("the vnode has ended".to_owned()),
            Err(_) => Err("the vnode did not answer in time".to_owned()),
        }
    }
}

/// Ask a vnode, and return its answer; `None` if it has ended.
pub(super) async fn ask_vnode<T: Send + 'static>(
    vnode: &VnodeHandle,
    ask: impl FnOnce(Answer<T>) -> Control,
) -> Option<T> {
    let (told, answered) = oneshot::channel();
    vnode.tell(ask(Box::new(move |answer| drop(told.send(answer)))));
    answered.await.ok()
}
