//! The answers of this node to other replicas.

use std::time::Duration;

use annulus_core::item::{Budget, Item, Page, RangeDigest};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::state::{Member, MemberStatus};
use annulus_core::wire::replica::{ReplicaAnswer, ReplicaAsk, ReplicaCall, ReplicaSaid};
use annulus_transport::limits::MAX_FRAME;
use annulus_transport::{PeerIdentity, Request, Responder};
use annulus_vnode::{Answer, Control, KeyState, NoReplica, ReplicaId, VnodeHandle};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::Replicas;

/// The budget of a page of all items.
pub(super) const PAGE: Budget = Budget { items: 1024, bytes: 256 << 10 };
/// The longest time to fetch the log from the sender of a request.
const LEARN_LIMIT: Duration = Duration::from_secs(1);

impl Replicas {
    /// Answer another replica. Runs on the threads of the network; only a request that waits for the log gets a task.
    pub fn serve(&self, request: Request) {
        let Request { from, payload, deadline, responder, .. } = request;
        let call = match ReplicaCall::decode(&payload) {
            Ok(call) => call,
            // Dropping the responder reports to the sender that no answer will come.
            Err(error) => return tracing::warn!(%error, ?from, "a frame of a replica cannot be read"),
        };
        let view = self.inner.cluster.view();
        if !view.serves() {
            let why = "the node is joining, or has an older history of the cluster, and does not serve";
            return respond(responder, 0, ReplicaSaid::Failed(why.to_owned()));
        }
        let id = ReplicaId { module: call.module, partition: call.partition };
        if view.state.ring.get(id.partition).is_none() {
            let why = format!("the ring has no partition {}", id.partition.0);
            return respond(responder, 0, ReplicaSaid::Failed(why));
        }
        let version = call.version;
        if let ReplicaAsk::Hint(items) = call.ask {
            let given = Given { items: items.into_owned(), responder };
            return self.keep(id, version, given, from, deadline);
        }
        match self.inner.master.replica(id, version) {
            Err(NoReplica::CatchUp) => {
                let this = self.clone();
                // The deadline of the request ends the task.
                annulus_ground::spawn(async move {
                    let Ok(found) = timeout_at(deadline, this.replica_at(id, version, &from)).await else {
                        return;
                    };
                    if let Ok(call) = ReplicaCall::decode(&payload) {
                        this.tell(found, call, responder);
                    }
                });
            }
            found => self.tell(found, call, responder),
        }
    }

    /// Keep items for replicas at other nodes (R6).
    fn keep(&self, id: ReplicaId, version: u64, given: Given, from: PeerIdentity, deadline: Instant) {
        match self.give(id, version, given) {
            Ok(is_first) => self.note_hint(is_first),
            Err((NoReplica::CatchUp, given)) => {
                let this = self.clone();
                // The deadline of the request ends the task.
                annulus_ground::spawn(async move {
                    if timeout_at(deadline, this.follow(version, &from)).await.is_err() {
                        return;
                    }
                    match this.give(id, version, given) {
                        Ok(is_first) => this.note_hint(is_first),
                        Err((why, given)) => given.refuse(why),
                    }
                });
            }
            Err((why, given)) => given.refuse(why),
        }
    }

    /// Give a write to a hint, unless this node leaves: then it is removed once it keeps none. Return true if it is the first
    /// write of the hint.
    fn give(&self, id: ReplicaId, version: u64, given: Given) -> Result<bool, (NoReplica, Given)> {
        let _let_in = self.inner.lets_in.read();
        let view = self.inner.cluster.view();
        let stays = |member: &Member| member.is_live() && member.status != MemberStatus::Leaving;
        if !view.member(view.me).is_some_and(stays) {
            return Err((NoReplica::NotReady, given));
        }
        self.inner.master.hint(id, version, given, Given::message)
    }

    fn note_hint(&self, is_first: bool) {
        // One that could not be delivered is tried again after a pause.
        if is_first {
            self.inner.hinted.notify_one();
        }
    }

    /// Have the vnode of a replica answer a request.
    fn tell(
        &self,
        found: Result<(VnodeHandle, u64), NoReplica>,
        call: ReplicaCall<'_>,
        responder: Responder,
    ) {
        let (vnode, version) = match found {
            Ok(found) => found,
            Err(NoReplica::Elsewhere(version)) => return respond(responder, version, ReplicaSaid::Refused),
            Err(NoReplica::CatchUp | NoReplica::NotReady) => {
                let why = "the module cannot run here yet".to_owned();
                return respond(responder, 0, ReplicaSaid::Failed(why));
            }
        };
        if let ReplicaAsk::Digest(key) = call.ask {
            let id = ReplicaId { module: call.module, partition: call.partition };
            if let Some(digest) = self.inner.master.digest_in_memory(id, key) {
                return respond(responder, version, ReplicaSaid::Digest(digest));
            }
        }
        // A vnode that has ended drops the message, and the responder with it.
        vnode.tell(asked(call.ask, move |said| respond(responder, version, said)));
    }

    /// Apply the log as far as the sender of a request.
    async fn follow(&self, version: u64, from: &PeerIdentity) {
        let cluster = &self.inner.cluster;
        if let PeerIdentity::Node { uid, .. } = from
            && let Some(sender) = cluster.view().state.member_by_uid(*uid)
        {
            // Ignore an error: the log may still come from another node. The caller has a deadline.
            let _ = cluster.learn_from(sender.id, version, Instant::now() + LEARN_LIMIT).await;
        }
        self.inner.master.wait_applied(version).await;
    }

    /// Return the vnode of a replica, once this node has applied the log as far as the sender.
    async fn replica_at(
        &self,
        id: ReplicaId,
        version: u64,
        from: &PeerIdentity,
    ) -> Result<(VnodeHandle, u64), NoReplica> {
        let master = &self.inner.master;
        let mut found = master.replica(id, version);
        if matches!(found, Err(NoReplica::CatchUp)) {
            self.follow(version, from).await;
            found = master.replica(id, version);
        }
        // Before state level 7, the sender's version may be that of a transfer that was dropped, which never comes here.
        found.map_err(|why| if why == NoReplica::CatchUp { NoReplica::NotReady } else { why })
    }
}

/// A write to keep for replicas at other nodes, and its answer.
struct Given {
    items: Vec<Item>,
    responder: Responder,
}

impl Given {
    fn message(self, version: u64) -> Control {
        let Self { items, responder } = self;
        asked(ReplicaAsk::Hint(items.into()), move |said| respond(responder, version, said))
    }

    fn refuse(self, why: NoReplica) {
        match why {
            NoReplica::Elsewhere(version) => respond(self.responder, version, ReplicaSaid::Refused),
            NoReplica::CatchUp | NoReplica::NotReady => {
                let why = "the module cannot run here yet".to_owned();
                respond(self.responder, 0, ReplicaSaid::Failed(why));
            }
        }
    }
}

fn respond(responder: Responder, version: u64, said: ReplicaSaid) {
    let mut frame = ReplicaAnswer { version, said }.encode();
    if frame.len() > MAX_FRAME {
        let why = format!("the items of the key take {} bytes; a frame has {MAX_FRAME}", frame.len());
        frame = ReplicaAnswer { version, said: ReplicaSaid::Failed(why) }.encode();
    }
    responder.send(Bytes::from(frame));
}

/// Return the message that has a vnode answer.
fn asked(ask: ReplicaAsk<'_>, say: impl FnOnce(ReplicaSaid) + Send + 'static) -> Control {
    match ask {
        ReplicaAsk::Merge(items) | ReplicaAsk::Hint(items) => {
            let answer: Answer<_> = Box::new(|merged: Result<(), String>| {
                say(merged.map_or_else(ReplicaSaid::Failed, |()| ReplicaSaid::Merged))
            });
            Control::Merge(items.into_owned(), answer)
        }
        ReplicaAsk::Digest(key) => asked_key(key, false, say, |state| ReplicaSaid::Digest(state.digest)),
        ReplicaAsk::Items(key) => asked_key(key, true, say, |state| ReplicaSaid::Items(state.items)),
        ReplicaAsk::PageDigest { after } => asked_page(after, false, say, |Page { items, next }, _| {
            ReplicaSaid::PageDigest { digest: RangeDigest::of(&items), next }
        }),
        ReplicaAsk::Page { after, of_any } => {
            asked_page(after, of_any, say, |Page { items, next }, complete| ReplicaSaid::Page {
                items,
                next,
                complete,
            })
        }
    }
}

fn asked_key(
    key: &[u8],
    with_items: bool,
    say: impl FnOnce(ReplicaSaid) + Send + 'static,
    of: impl FnOnce(KeyState) -> ReplicaSaid + Send + 'static,
) -> Control {
    let answer: Answer<Result<Option<KeyState>, String>> = Box::new(|told| {
        say(match told {
            Ok(state) => state.map_or(ReplicaSaid::Incomplete, of),
            Err(why) => ReplicaSaid::Failed(why),
        });
    });
    Control::TellKey { key: key.to_vec(), with_items, answer }
}

fn asked_page(
    after: Option<&[u8]>,
    of_any: bool,
    say: impl FnOnce(ReplicaSaid) + Send + 'static,
    of: impl FnOnce(Page, bool) -> ReplicaSaid + Send + 'static,
) -> Control {
    let answer: Answer<Result<Option<(Page, bool)>, String>> = Box::new(|told| {
        say(match told {
            Ok(page) => page.map_or(ReplicaSaid::Incomplete, |(page, complete)| of(page, complete)),
            Err(why) => ReplicaSaid::Failed(why),
        });
    });
    Control::TellPage { after: after.map(<[u8]>::to_vec), limit: PAGE, of_any, answer }
}

/// Return the error of a command whose module this node does not run as a replica.
pub(super) fn not_ready() -> RequestError {
    RequestError::not_applied(ErrorCode::NotReady, "this node cannot run the module yet; ask another replica")
}
