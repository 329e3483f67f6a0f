//! Following the cluster into another lineage (R19).
//!
//! A recovery begins a new lineage. Other nodes learn of it by a peer's hello, by Raft's messages, which name
//! their lineage, or by a message of the node that recovered. From then on they serve nothing, fetch the newer
//! state from any node that has it, and restart Raft under it, in place: vnodes, with their state in memory,
//! stay as far as the new ring places them here.

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

/// After this long without a leader a node asks around. Longer than many elections.
const LONELY: Duration = Duration::from_secs(10);

/// Pause before all members are asked again for a state that was heard of.
const PAUSE: Duration = Duration::from_millis(200);

/// The newest lineage heard of.
#[derive(Clone, Copy, Debug)]
struct LineageNews {
    lineage: Lineage,
    from: NodeUid,
}

/// Follows newer lineages, and tells peers of older ones about this node's.
pub(super) struct Lineages {
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    peers: Peers,
    fetcher: Arc<StateFetcher>,
    tasks: Arc<Tasks>,
    /// Holds the newest news only.
    heard: watch::Sender<LineageNews>,
    /// Peers of older lineages to which a message about this one is under way.
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

    /// Note that a peer is in a lineage. If it is newer, this node serves nothing until it is in it, too.
    pub(super) fn hear_of(&self, from: NodeUid, lineage: Lineage) {
        if self.views.supersede(lineage) {
            tracing::warn!(%from, number = lineage.number, "the cluster was recovered without this node, which takes over the newer state now");
        }
        self.heard.send_if_modified(|heard| {
            let newer = lineage > heard.lineage;
            if newer {
                *heard = LineageNews { lineage, from };
            }
            newer
        });
    }

    /// A peer has refused this node because its lineage does not have it as a member.
    pub(super) fn refused(&self) {
        self.views.cast_out(self.views.load().state.lineage.max(self.heard.borrow().lineage));
    }

    /// Follow every newer lineage heard of, until the control plane stops.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut heard = self.heard.subscribe();
        loop {
            let news = *heard.borrow_and_update();
            let view = self.views.load();
            // The lineage that has cast this node out does not take it back; a later one may.
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

    /// Ask the members that this node knows for a newer state, if no leader has contacted it for long: they
    /// may have recovered without it, and its connections may be older than that.
    async fn ask_around(&self) {
        let view = self.views.load();
        if view.outside.is_some() || self.group.heard_from_leader_within(LONELY) {
            return;
        }
        for peer in view.state.live_members().map(|member| member.id).filter(|id| *id != view.me) {
            self.fetcher.fetch(peer, Instant::now() + ASK).await;
        }
    }

    /// Fetch a state at least as new as the news: from their source first, then from all members.
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

    /// Fetch the state from the source of the news, which may be a member of that lineage only. True if this
    /// node is in the lineage then, or knows that it is no member of it.
    async fn take_over_from_source(&self, news: LineageNews) -> bool {
        self.fetcher.fetch_linked(news.from, Instant::now() + ASK).await;
        let view = self.views.load();
        view.state.lineage.max(view.outside.unwrap_or_default()) >= news.lineage
    }

    /// Before a recovery: take over another node's recovery, if its state can still be had, and return the
    /// newest lineage heard of.
    pub(super) async fn take_over_what_is_heard(&self) -> Lineage {
        let news = *self.heard.borrow();
        if news.lineage > self.views.load().state.lineage {
            self.take_over_from_source(news).await;
        }
        news.lineage
    }

    /// Tell a peer of an older lineage about this one. The peer may be no member of this lineage, so that no
    /// other node would tell it. At most one message per peer is under way.
    pub(super) fn tell(self: &Arc<Self>, peer: NodeUid) {
        let lineage = self.views.load().state.lineage;
        if self.told.lock().insert(peer, lineage).is_some_and(|told| told >= lineage) {
            return;
        }
        let this = self.clone();
        self.tasks.spawn(async move {
            if let (Some(to), Ok(message)) = (this.peers.network.linked(peer), codec::encode(&lineage)) {
                let deadline = Instant::now() + ASK;
                // The reply would say that the peer is in the lineage by now; it is told again until it is.
                drop(this.peers.network.call(to, kind::RECOVERED, message.into(), deadline).await);
            }
            this.told.lock().remove(&peer);
        });
    }

    /// A peer has recovered the cluster. True once this node is in that lineage.
    pub(super) async fn come_over(&self, from: NodeUid, lineage: Lineage, deadline: Instant) -> bool {
        self.hear_of(from, lineage);
        let mut views = self.views.subscribe();
        let over = views.wait_for(|view| view.state.lineage >= lineage);
        matches!(timeout_at(deadline, over).await, Ok(Ok(_)))
    }
}
