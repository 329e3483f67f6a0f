//! How much there is to move: items and bytes of partitions, asked of the nodes that own them.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_core::ids::{ModuleUid, NodeId};
use annulus_core::keyspace::PartitionId;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::Handoff;
use annulus_core::codec;
use annulus_transport::{Lane, Request, kind};

/// Partitions that one node counts at once.
const COUNTED_AT_ONCE: usize = 8;
/// What is kept back of a deadline for the way of the answer.
const WAY_BACK: Duration = Duration::from_millis(200);

/// What a partition has of all modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Items, without tombstones.
    pub items: u64,
    /// Their keys, sorts and values.
    pub bytes: u64,
}

/// Asks for these partitions.
#[derive(Serialize, Deserialize)]
struct CountRequest {
    partitions: Vec<PartitionId>,
}

/// Those that could be counted in time.
type CountReply = Vec<(PartitionId, Held)>;

impl Handoff {
    /// What each of these partitions has, as its owner counts it. One whose owner does not
    /// answer, or not in time, is left out: it is not known, which is not nothing.
    pub fn holdings<'a>(
        &'a self,
        partitions: &'a BTreeMap<PartitionId, NodeId>,
        deadline: Instant,
    ) -> BoxFuture<'a, BTreeMap<PartitionId, Held>> {
        Box::pin(async move {
            let mut by_owner: BTreeMap<NodeId, Vec<PartitionId>> = BTreeMap::new();
            for (partition, owner) in partitions {
                by_owner.entry(*owner).or_default().push(*partition);
            }
            let asked = by_owner.into_iter().map(|(owner, partitions)| async move {
                if owner == self.inner.cluster.me() {
                    return self.count_here(partitions, deadline).await;
                }
                self.ask_for_counts(owner, partitions, deadline).await.unwrap_or_default()
            });
            join_all(asked).await.into_iter().flatten().collect()
        })
    }

    async fn ask_for_counts(
        &self,
        owner: NodeId,
        partitions: Vec<PartitionId>,
        deadline: Instant,
    ) -> Option<CountReply> {
        let peer = self.inner.cluster.view().peer(owner)?;
        let request = codec::encode(&CountRequest { partitions }).ok()?;
        let call = self.inner.transport.call(&peer, Lane::Control, kind::HOLDINGS, request.into(), deadline);
        let answer = call.await.inspect_err(|error| {
            tracing::info!(node = %owner, %error, "does not say how much it holds");
        });
        codec::decode(&answer.ok()?).ok()
    }

    /// Answers a control request of kind `HOLDINGS`.
    pub fn serve_holdings(&self, request: Request) {
        let this = self.clone();
        annulus_ground::spawn(async move {
            let Ok(CountRequest { partitions }) = codec::decode(&request.payload) else {
                return tracing::warn!(from = ?request.from, "an unreadable question for counts");
            };
            let deadline = request.deadline.checked_sub(WAY_BACK).unwrap_or(request.deadline);
            match codec::encode(&this.count_here(partitions, deadline).await) {
                Ok(counts) => request.responder.send(Bytes::from(counts)),
                Err(error) => tracing::error!(%error, "counts cannot be written"),
            }
        });
    }

    /// Partitions that are not this node's (any more) are left out.
    async fn count_here(&self, partitions: Vec<PartitionId>, deadline: Instant) -> CountReply {
        let view = self.inner.cluster.view();
        let mine = partitions.into_iter().filter(|partition| {
            let known = view.state.ring.get(*partition);
            known.is_some_and(|known| known.replicas.first() == Some(&view.me))
        });
        let counted = futures_util::stream::iter(mine).map(|partition| async move {
            let counted = timeout_at(deadline, self.inner.master.measure(partition)).await.ok()?;
            let counts = counted
                .inspect_err(|reason| tracing::info!(partition = partition.0, reason, "cannot be counted"));
            let held = counts.ok()?.into_iter().fold(Held::default(), |sum, (_, size): (ModuleUid, _)| {
                Held { items: sum.items + size.items, bytes: sum.bytes + size.bytes }
            });
            Some((partition, held))
        });
        counted.buffer_unordered(COUNTED_AT_ONCE).filter_map(std::future::ready).collect().await
    }
}
