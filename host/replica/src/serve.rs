//! The answers of this node to other replicas.

use std::time::Duration;

use annulus_core::item::{Budget, Page, RangeDigest};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::wire::replica::{ReplicaAnswer, ReplicaAsk, ReplicaCall, ReplicaSaid};
use annulus_transport::limits::MAX_FRAME;
use annulus_transport::{PeerIdentity, Request};
use annulus_vnode::{Control, KeyState, NoReplica, ReplicaId, VnodeHandle};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::Replicas;
use super::ask::ask_vnode;

/// The budget of a page of all items.
pub(super) const PAGE: Budget = Budget { items: 1024, bytes: 256 << 10 };
/// The longest time to fetch the log from the sender of a request.
const LEARN_LIMIT: Duration = Duration::from_secs(1);

impl Replicas {
    /// Answer another replica. Runs on the threads of the network; whatever waits gets a task.
    pub fn serve(&self, request: Request) {
        let this = self.clone();
        // The deadline of the request ends the task.
        annulus_ground::spawn(async move {
            let call = match ReplicaCall::decode(&request.payload) {
                Ok(call) => call,
                // Dropping the responder reports to the sender that no answer will come.
                Err(error) => {
                    return tracing::warn!(%error, from = ?request.from, "a frame of a replica cannot be read");
                }
            };
            let deadline = request.deadline;
            let answer = timeout_at(deadline, this.answer(call, &request.from)).await;
            if let Ok(Some(answer)) = answer {
                let mut frame = answer.encode();
                if frame.len() > MAX_FRAME {
                    let why =
                        format!("the items of the key take {} bytes; a frame has {MAX_FRAME}", frame.len());
                    frame =
                        ReplicaAnswer { version: answer.version, said: ReplicaSaid::Failed(why) }.encode();
                }
                request.responder.send(Bytes::from(frame));
            }
        });
    }

    /// Return the answer to a request; `None` if there is none, because this node's vnodes end.
    async fn answer(&self, call: ReplicaCall<'_>, from: &PeerIdentity) -> Option<ReplicaAnswer> {
        let view = self.inner.cluster.view();
        if !view.serves() {
            let why = "the node is joining, or has an older history of the cluster, and does not serve";
            return Some(ReplicaAnswer { version: 0, said: ReplicaSaid::Failed(why.to_owned()) });
        }
        let id = ReplicaId { module: call.module, partition: call.partition };
        if view.state.ring.get(id.partition).is_none() {
            let why = format!("the ring has no partition {}", id.partition.0);
            return Some(ReplicaAnswer { version: 0, said: ReplicaSaid::Failed(why) });
        }
        let (vnode, version) = match self.replica_at(id, call.version, from).await {
            Ok(found) => found,
            Err(NoReplica::Elsewhere(version)) => {
                return Some(ReplicaAnswer { version, said: ReplicaSaid::Refused });
            }
            Err(NoReplica::CatchUp | NoReplica::NotReady) => {
                let why = "the module cannot run here yet".to_owned();
                return Some(ReplicaAnswer { version: 0, said: ReplicaSaid::Failed(why) });
            }
        };
        said(&vnode, call.ask).await.map(|said| ReplicaAnswer { version, said })
    }

    /// Return the vnode of a replica, once this node has applied the log as far as the sender.
    async fn replica_at(
        &self,
        id: ReplicaId,
        version: u64,
        from: &PeerIdentity,
    ) -> Result<(VnodeHandle, u64), NoReplica> {
        let master = &self.inner.master;
        let mut learned = false;
        loop {
            match master.replica(id, version) {
                Err(NoReplica::CatchUp) if !learned => {
                    let cluster = &self.inner.cluster;
                    if let PeerIdentity::Node { uid, .. } = from
                        && let Some(sender) = cluster.view().state.member_by_uid(*uid)
                    {
                        // Ignore an error: the log may still come from another node. The caller has a deadline.
                        let deadline = Instant::now() + LEARN_LIMIT;
                        let _ = cluster.learn_from(sender.id, version, deadline).await;
                    }
                    learned = true;
                }
                Err(NoReplica::CatchUp) => master.wait_applied(version).await,
                found => return found,
            }
        }
    }
}

/// Return what a vnode says; `None` if it has ended.
async fn said(vnode: &VnodeHandle, ask: ReplicaAsk<'_>) -> Option<ReplicaSaid> {
    match ask {
        ReplicaAsk::Merge(items) => {
            let merged = ask_vnode(vnode, |answer| Control::Merge(items.into_owned(), answer)).await?;
            Some(merged.map_or_else(ReplicaSaid::Failed, |()| ReplicaSaid::Merged))
        }
        ReplicaAsk::Digest(key) => {
            said_of_key(vnode, key, false, |state| ReplicaSaid::Digest(state.digest)).await
        }
        ReplicaAsk::Items(key) => {
            said_of_key(vnode, key, true, |state| ReplicaSaid::Items(state.items)).await
        }
        ReplicaAsk::PageDigest { after } => {
            let say =
                |Page { items, next }, _| ReplicaSaid::PageDigest { digest: RangeDigest::of(&items), next };
            said_of_page(vnode, after, false, say).await
        }
        ReplicaAsk::Page { after, of_any } => {
            let say = |Page { items, next }, complete| ReplicaSaid::Page { items, next, complete };
            said_of_page(vnode, after, of_any, say).await
        }
    }
}

async fn said_of_key(
    vnode: &VnodeHandle,
    key: &[u8],
    with_items: bool,
    say: impl FnOnce(KeyState) -> ReplicaSaid,
) -> Option<ReplicaSaid> {
    let ask = |answer| Control::TellKey { key: key.to_vec(), with_items, answer };
    Some(match ask_vnode(vnode, ask).await? {
        Ok(state) => state.map_or(ReplicaSaid::Incomplete, say),
        Err(why) => ReplicaSaid::Failed(why),
    })
}

async fn said_of_page(
    vnode: &VnodeHandle,
    after: Option<&[u8]>,
    of_any: bool,
    say: impl FnOnce(Page, bool) -> ReplicaSaid,
) -> Option<ReplicaSaid> {
    let after = after.map(<[u8]>::to_vec);
    let ask = |answer| Control::TellPage { after, limit: PAGE, of_any, answer };
    Some(match ask_vnode(vnode, ask).await? {
        Ok(page) => page.map_or(ReplicaSaid::Incomplete, |(page, complete)| say(page, complete)),
        Err(why) => ReplicaSaid::Failed(why),
    })
}

/// Return the error of a command whose module this node does not run as a replica.
pub(super) fn not_ready() -> RequestError {
    RequestError::not_applied(ErrorCode::NotReady, "this node cannot run the module yet; ask another replica")
}
