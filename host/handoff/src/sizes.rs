//! The sizes of partitions, counted by the nodes that own them.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_core::ids::{ModuleUid, NodeId};
use annulus_core::keyspace::PartitionId;
use annulus_core::role::{REPLICAS, Role};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::Handoff;
use annulus_core::codec;
use annulus_transport::{Lane, Request, kind};

/// The maximum number of partitions that one node counts concurrently.
const COUNTED_AT_ONCE: usize = 8;
/// The part of a deadline that is reserved for the transmission of the answer.
const WAY_BACK: Duration = Duration::from_millis(200);

/// The size of a partition, of all modules together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionSize {
    /// Items, without tombstones.
    pub items: u64,
    /// Bytes of their keys, sort keys and values.
    pub bytes: u64,
}

/// The partitions to count.
#[derive(Serialize, Deserialize)]
struct CountRequest {
    partitions: Vec<PartitionId>,
}

/// The partitions that were counted in time.
type CountReply = Vec<(PartitionId, PartitionSize)>;

impl Handoff {
    /// Return the size of each of these partitions as its owner counts it. A partition whose owner does not answer in
    /// time is left out: its size is unknown, not zero.
    pub fn partition_sizes<'a>(
        &'a self,
        partitions: &'a BTreeMap<PartitionId, NodeId>,
        deadline: Instant,
    ) -> BoxFuture<'a, BTreeMap<PartitionId, PartitionSize>> {
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
            tracing::info!(node = %owner, %error, "a peer did not report its partition sizes");
        });
        codec::decode(&answer.ok()?).ok()
    }

    /// Answer a control request of kind `HOLDINGS`.
    pub fn serve_partition_sizes(&self, request: Request) {
        let this = self.clone();
        // The request's deadline ends the task.
        self.inner.tasks.spawn(async move {
            let Ok(CountRequest { partitions }) = codec::decode(&request.payload) else {
                return tracing::warn!(from = ?request.from, "a request for partition sizes cannot be read");
            };
            let deadline = request.deadline.checked_sub(WAY_BACK).unwrap_or(request.deadline);
            match codec::encode(&this.count_here(partitions, deadline).await) {
                Ok(counts) => request.responder.send(Bytes::from(counts)),
                Err(error) => tracing::error!(%error, "partition sizes cannot be encoded"),
            }
        });
    }

    /// Count the partitions that this node owns, and leave out the others.
    async fn count_here(&self, partitions: Vec<PartitionId>, deadline: Instant) -> CountReply {
        let view = self.inner.cluster.view();
        let role = |partition: &PartitionId| view.state.ring.role_of(view.me, *partition, REPLICAS);
        let mine = partitions.into_iter().filter(|partition| role(partition) == Role::Owner);
        let counted = futures_util::stream::iter(mine).map(|partition| async move {
            let counted = timeout_at(deadline, self.inner.master.measure(partition)).await.ok()?;
            let counts = counted
                .inspect_err(|reason| tracing::info!(partition = partition.0, reason, "cannot be counted"));
            let size = counts.ok()?.into_iter().fold(
                PartitionSize::default(),
                |sum, (_, weight): (ModuleUid, _)| PartitionSize {
                    items: sum.items + weight.items,
                    bytes: sum.bytes + weight.bytes,
                },
            );
            Some((partition, size))
        });
        counted.buffer_unordered(COUNTED_AT_ONCE).filter_map(std::future::ready).collect().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use annulus_core::junk::{Target, attack, done};

    use super::*;
    use crate::rows::TransferRow;

    #[test]
    fn no_bytes_make_a_message_panic() {
        let request = CountRequest { partitions: vec![PartitionId(1), PartitionId(2)] };
        let reply: CountReply = vec![(PartitionId(1), PartitionSize { items: 1, bytes: 2 })];
        attack(&[
            Target {
                name: "CountRequest",
                valid: vec![codec::encode(&request).unwrap()],
                decode: |bytes| done(codec::decode::<CountRequest>(bytes)),
            },
            Target {
                name: "CountReply",
                valid: vec![codec::encode(&reply).unwrap()],
                decode: |bytes| done(codec::decode::<CountReply>(bytes)),
            },
            Target {
                name: "TransferRow",
                valid: vec![codec::encode(&Vec::<TransferRow>::new()).unwrap()],
                decode: |bytes| done(codec::decode::<Vec<TransferRow>>(bytes)),
            },
        ]);
    }
}
