//! Following the cluster into another lineage (R19).
//!
//! A recovery starts a new lineage. Other nodes learn of it from a peer's hello, from Raft's messages, which
//! name their lineage, or from a message of the node that recovered. From then on they serve nothing, fetch
//! the newer state from any node that has it, and restart Raft with it, in place. Vnodes that the new ring
//! places on this node stay, with their state in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::codec;
use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::state::Lineage;
use annulus_transport::kind;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::fetch::StateFetcher;
use super::group::RaftGroup;
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

    /// Record that a peer is in a lineage. If the lineage is newer, this node serves nothing until it is in
    /// that lineage too.
    pub(super) fn hear_of(&self, from: NodeUid, lineage: Lineage) {
        if self.views.supersede(lineage) {
            tracing::warn!(%from, number = lineage.number, "the cluster was recovered without this node, which now adopts the newer state");
        }
        self.heard.send_if_modified(|heard| {
            let newer = lineage > heard.lineage;
            if newer {
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
        if self.take_over_from_source(news).await {
            return;
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
    /// Return true if this node is then in the lineage, or knows that it is not a member of it.
    async fn take_over_from_source(&self, news: LineageNews) -> bool {
        self.fetcher.fetch_linked(news.from, Instant::now() + ASK).await;
        let view = self.views.load();
        view.state.lineage.max(view.outside.unwrap_or_default()) >= news.lineage
    }

    /// Adopt another node's recovery before this node recovers, if the state is still available. Return the
    /// newest lineage that a peer has reported.
    pub(super) async fn take_over_what_is_heard(&self) -> Lineage {
        let news = *self.heard.borrow();
        if news.lineage > self.views.load().state.lineage {
            self.take_over_from_source(news).await;
        }
        news.lineage
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
