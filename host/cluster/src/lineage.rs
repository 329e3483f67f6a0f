//! Following the cluster into another lineage (R19).
//!
//! A recovery starts a new lineage. Other nodes learn of it from a peer's hello, from Raft's messages, which
//! name their lineage, or from a message of the node that recovered. They fetch the newer state from any node
//! that has it, from then on serve nothing, and restart Raft with it, in place. Vnodes that the new ring
//! places on this node stay, with their state in memory.
//!
//! A lineage that a peer only names changes nothing: otherwise one message would end the service of a node. Nodes
//! that have left, or were removed, are not asked either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::codec;
use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::state::{Lineage, Standing};
use annulus_transport::kind;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::fetch::StateFetcher;
use super::group::RaftGroup;
use super::messages::{Announce, AnnounceReply};
use super::peers::Peers;
use super::tasks::Tasks;
use super::view::Views;

/// Longest wait for a peer's state.
const ASK: Duration = Duration::from_secs(2);

/// Time without a leader after which a node asks all members. Longer than many elections.
const LONELY: Duration = Duration::from_secs(10);

/// Pause before all members are asked again for a reported state.
const PAUSE: Duration = Duration::from_millis(200);

/// The newest lineage that a peer has reported.
#[derive(Clone, Copy, Debug)]
struct LineageNews {
    lineage: Lineage,
    from: NodeUid,
}

/// The result of asking the node that reported a lineage for its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// This node is in the lineage, or is known not to be a member of it.
    Taken,
    /// The node has answered, and is not in the lineage.
    Contradicts,
    /// The node has not answered.
    Silent,
}

/// Follows newer lineages, and reports this node's lineage to peers of older ones.
pub(super) struct Lineages {
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    peers: Peers,
    fetcher: Arc<StateFetcher>,
    tasks: Arc<Tasks>,
    /// Holds the newest report only.
    heard: watch::Sender<LineageNews>,
    /// Peers of older lineages to which a message about this one is being sent.
    told: Mutex<BTreeMap<NodeUid, Lineage>>,
}

impl Lineages {
    pub(super) fn new(
        uid: NodeUid,
        views: Arc<Views>,
        group: Arc<RaftGroup>,
        peers: Peers,
        fetcher: Arc<StateFetcher>,
        tasks: Arc<Tasks>,
    ) -> Self {
        let nothing = LineageNews { lineage: Lineage::default(), from: uid };
        Self {
            views,
            group,
            peers,
            fetcher,
            tasks,
            heard: watch::Sender::new(nothing),
            told: Mutex::default(),
        }
    }

    /// Record that a peer is in a lineage. If the lineage is newer, this node asks for its state.
    pub(super) fn hear_of(&self, from: NodeUid, lineage: Lineage) {
        let view = self.views.load();
        if lineage <= view.state.lineage {
            return;
        }
        let standing = view.state.standing(from);
        if standing == Standing::Removed || !lineage.may_follow(view.state.lineage) {
            tracing::warn!(%from, number = lineage.number, ?standing, "a lineage is not believed");
            return;
        }
        self.heard.send_if_modified(|heard| {
            let newer = lineage > heard.lineage;
            if newer {
                tracing::warn!(%from, number = lineage.number, "a peer is in a newer lineage; asking for its state");
                *heard = LineageNews { lineage, from };
            }
            newer
        });
    }

    /// Record that a peer has refused this node because the peer's lineage does not include it.
    pub(super) fn refused(&self) {
        self.views.cast_out(self.views.load().state.lineage.max(self.heard.borrow().lineage));
    }

    /// Follow every newer lineage that a peer reports, until the control plane stops.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut heard = self.heard.subscribe();
        loop {
            let news = *heard.borrow_and_update();
            let view = self.views.load();
            // The lineage that excludes this node stays closed to it. A later one may include it.
            let known = view.outside.map_or(view.state.lineage, |of| of.max(view.state.lineage));
            let changed = if news.lineage > known {
                self.take_over(news).await;
                timeout(PAUSE, heard.changed()).await.unwrap_or(Ok(()))
            } else {
                match timeout(LONELY, heard.changed()).await {
                    Ok(changed) => changed,
                    Err(_) => {
                        self.ask_around().await;
                        Ok(())
                    }
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Ask the members that this node knows for a newer state, if no leader has contacted it for long. They
    /// may have recovered without it, and its connections may be older than the recovery.
    async fn ask_around(&self) {
        let view = self.views.load();
        if view.outside.is_some() || self.group.heard_from_leader_within(LONELY) {
            return;
        }
        for peer in view.state.live_members().map(|member| member.id).filter(|id| *id != view.me) {
            self.fetcher.fetch(peer, Instant::now() + ASK).await;
        }
    }

    /// Fetch a state at least as new as the reported lineage, first from the node that reported it, then from
    /// all members.
    async fn take_over(&self, news: LineageNews) {
        match self.ask_source(news).await {
            Source::Taken => return,
            // The state of a peer is never older than the lineage that it has named.
            Source::Contradicts => {
                tracing::warn!(from = %news.from, number = news.lineage.number, "a peer is not in the lineage that it has named");
                return self.forget(news);
            }
            Source::Silent => {}
        }
        let view = self.views.load();
        let mut peers: Vec<NodeId> = view.state.live_members().map(|member| member.id).collect();
        peers.retain(|id| *id != view.me);
        for peer in peers {
            self.fetcher.fetch(peer, Instant::now() + ASK).await;
            if self.views.load().state.lineage >= news.lineage {
                return;
            }
        }
    }

    /// Fetch the state from the node that reported the lineage, which may be a member of that lineage only.
    async fn ask_source(&self, news: LineageNews) -> Source {
        let answered = self.fetcher.fetch_linked(news.from, Instant::now() + ASK).await;
        if self.is_over(news.lineage) {
            return Source::Taken;
        }
        if answered {
            return Source::Contradicts;
        }
        // A member gives its state to members only.
        let is_member = matches!(self.views.load().state.standing(news.from), Standing::Member(_));
        if is_member && self.is_stranger_to(news.from).await {
            self.views.cast_out(news.lineage);
            return Source::Taken;
        }
        Source::Silent
    }

    /// Return true if this node is in the lineage, or knows that it is not a member of it.
    fn is_over(&self, lineage: Lineage) -> bool {
        let view = self.views.load();
        view.state.lineage.max(view.outside.unwrap_or_default()) >= lineage
    }

    /// Ask a peer whether this node is a member, by the peer's state. Return false if there is no answer.
    async fn is_stranger_to(&self, peer: NodeUid) -> bool {
        let Some(to) = self.peers.network.linked(peer) else { return false };
        let view = self.views.load();
        let own = view.peer(view.me);
        let Some(announce) = own.map(|own| Announce { listen: own.addr, stamp: None }) else { return false };
        let Ok(message) = codec::encode(&announce) else { return false };
        let asked = self.peers.network.call(to, kind::ANNOUNCE, message.into(), Instant::now() + ASK).await;
        let answer = asked.ok().and_then(|answer| codec::decode::<AnnounceReply>(&answer).ok());
        answer.is_some_and(|answer| answer != AnnounceReply::Member)
    }

    fn forget(&self, news: LineageNews) {
        self.heard.send_if_modified(|heard| {
            if heard.lineage == news.lineage && heard.from == news.from {
                heard.lineage = Lineage::default();
            }
            false
        });
    }

    /// Adopt another node's recovery before this node recovers, if the state is still available. Return the
    /// newest lineage that a peer has reported.
    pub(super) async fn take_over_what_is_heard(&self) -> Lineage {
        let news = *self.heard.borrow();
        if news.lineage > self.views.load().state.lineage
            && self.ask_source(news).await == Source::Contradicts
        {
            self.forget(news);
        }
        self.heard.borrow().lineage
    }

    /// Report this lineage to a peer of an older one. If the peer is not a member of this lineage, no other
    /// node would report it. At most one message per peer is sent at a time.
    pub(super) fn tell(self: &Arc<Self>, peer: NodeUid) {
        let lineage = self.views.load().state.lineage;
        if self.told.lock().insert(peer, lineage).is_some_and(|told| told >= lineage) {
            return;
        }
        let this = self.clone();
        self.tasks.spawn(async move {
            if let (Some(to), Ok(message)) = (this.peers.network.linked(peer), codec::encode(&lineage)) {
                let deadline = Instant::now() + ASK;
                // The reply shows that the peer has adopted the lineage. It is not needed, because the report
                // is repeated until the peer has.
                drop(this.peers.network.call(to, kind::RECOVERED, message.into(), deadline).await);
            }
            this.told.lock().remove(&peer);
        });
    }

    /// Handle a peer's report that it has recovered the cluster. Return true once this node is in that
    /// lineage.
    pub(super) async fn come_over(&self, from: NodeUid, lineage: Lineage, deadline: Instant) -> bool {
        self.hear_of(from, lineage);
        let mut views = self.views.subscribe();
        let over = views.wait_for(|view| view.state.lineage >= lineage);
        matches!(timeout_at(deadline, over).await, Ok(Ok(_)))
    }
}
