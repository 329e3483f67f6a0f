//! One read of a quorum: the members compare digests of the key, and merge what differs.

use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::item::RangeDigest;
use annulus_core::mutants::{self, Mutant};
use annulus_core::quorum::{Group, Read, ReadEvent, ReadStep};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::wire::replica::{ReplicaAsk, ReplicaSaid};
use annulus_vnode::ReplicaId;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::Replicas;

/// A member that has been silent for this long is passed over: another one is asked as well (R10).
const SILENCE: Duration = Duration::from_millis(150);

/// The result of a read of a quorum.
pub(super) struct Agreed {
    /// True if items were merged here, or the sets have changed, since the command ran.
    pub(super) rerun: bool,
    /// The members that lack items of the key.
    pub(super) repair: Vec<NodeId>,
}

/// What a step has led to: an event of a node, or nothing.
type Heard = (NodeId, Option<ReadEvent>);

impl Replicas {
    /// Have `r` members, this one among them, agree on the items of a key. Afterwards this node has what all of them have.
    ///
    /// # Errors
    /// Too few members answer, or this node is no member any more. Nothing was told to anybody.
    pub(super) async fn agree(
        &self,
        id: ReplicaId,
        key: &[u8],
        (group, r): (Group, usize),
        own: RangeDigest,
        deadline: Instant,
    ) -> Result<Agreed, RequestError> {
        if mutants::on(Mutant::ReadOneReplica) {
            return Ok(Agreed { rerun: false, repair: Vec::new() });
        }
        let me = self.inner.cluster.me();
        let mut teller = me;
        let (mut read, mut steps) = Read::start(group, r, me, own);
        let mut waiting: FuturesUnordered<BoxFuture<'_, Heard>> = FuturesUnordered::new();
        loop {
            while let Some(step) = steps.pop() {
                match step {
                    ReadStep::Ask(nodes, version) => {
                        for node in nodes {
                            waiting.push(Box::pin(self.ask_digest(id, key, version, node, deadline)));
                            waiting.push(Box::pin(async move {
                                tokio::time::sleep(SILENCE).await;
                                (node, Some(ReadEvent::Silent { from: node }))
                            }));
                        }
                    }
                    ReadStep::Fetch(node) => {
                        waiting.push(Box::pin(self.fetch(id, key, node, deadline)));
                    }
                    ReadStep::Learn(wanted) => match self.learn(teller, id, wanted, deadline).await {
                        Some(group) => steps.extend(read.on(ReadEvent::Learned(group))),
                        None => {
                            return Err(not_enough("the last change of the ring was not learned in time"));
                        }
                    },
                    ReadStep::Elsewhere => {
                        return Err(RequestError::stale_ring(
                            self.inner.cluster.view().partition(id.partition).version,
                        ));
                    }
                    ReadStep::Answer { rerun, repair } => return Ok(Agreed { rerun, repair }),
                    ReadStep::NotEnough => return Err(not_enough("too few replicas of the key answer")),
                }
            }
            let event = tokio::select! {
                Some((node, event)) = waiting.next() => {
                    teller = node;
                    event
                }
                () = sleep_until(deadline) => {
                    let message = "the replicas of the key did not answer in time";
                    return Err(RequestError::not_applied(ErrorCode::DeadlineExceeded, message));
                }
            };
            if let Some(event) = event {
                steps.extend(read.on(event));
            }
        }
    }

    async fn ask_digest(
        &self,
        id: ReplicaId,
        key: &[u8],
        version: u64,
        from: NodeId,
        deadline: Instant,
    ) -> Heard {
        let frame = Self::frame(id, version, ReplicaAsk::Digest(key));
        let event = match self.ask(from, frame, deadline).await {
            Ok(answer) => match answer.said {
                ReplicaSaid::Digest(digest) => ReadEvent::Digest { from, version: answer.version, digest },
                ReplicaSaid::Incomplete | ReplicaSaid::Refused => {
                    ReadEvent::No { from, version: Some(answer.version) }
                }
                _ => ReadEvent::No { from, version: None },
            },
            Err(_) => ReadEvent::No { from, version: None },
        };
        (from, Some(event))
    }

    /// Fetch the items of a member and merge them here.
    async fn fetch(&self, id: ReplicaId, key: &[u8], from: NodeId, deadline: Instant) -> Heard {
        let frame = Self::frame(id, 0, ReplicaAsk::Items(key));
        let merged = async {
            let answer = self.ask(from, frame, deadline).await?;
            let ReplicaSaid::Items(items) = answer.said else { return Err("it gives no items".to_owned()) };
            // A peer decides on the items of this key, and on no others.
            if items.iter().any(|item| item.key != key) {
                return Err("it gives items of another key".to_owned());
            }
            let theirs = RangeDigest::of(&items);
            self.merge_here(id, items, deadline).await?;
            let own = self.digest_here(id, key, deadline).await?;
            Ok(ReadEvent::Merged { from, theirs, own })
        };
        let event = merged.await.unwrap_or_else(|reason: String| {
            tracing::debug!(%from, reason, "the items of a replica were not merged");
            ReadEvent::No { from, version: None }
        });
        (from, Some(event))
    }
}

fn not_enough(why: &str) -> RequestError {
    RequestError::not_applied(ErrorCode::NotEnoughReplicas, why)
}
