//! Changing over to another history of the cluster (R19).
//!
//! A recovery begins a new lineage; everybody else hears of it: by a peer's hello, by Raft's own
//! messages, which name their lineage, or by being told. Who hears of a newer one serves nothing
//! from then on, takes the newer state from whoever has it, and begins its Raft anew under it, in
//! place: vnodes, with what they hold in memory, stay as far as the new ring says that they are
//! held here. The old log and vote stay on disk, in a keyspace of their own, and count no more.

use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::state::{ClusterState, Lineage};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::messages::{FETCH_STATE, FetchState, FetchStateReply};
use super::network::RaftLinks;
use super::raft::{self, Raft};
use super::start::{ClusterError, watch_raft};
use super::storage::{LogStore, RaftStore, StateMachine, Syncer};
use super::{Cluster, Ended};
use annulus_core::codec;
use annulus_transport::{PeerAddr, kind};

/// How long a peer may take to give its state.
const ASK: Duration = Duration::from_secs(2);

/// A node that has heard from no leader for this long asks around: many elections.
const LONELY: Duration = Duration::from_secs(10);

/// Pause before everybody is asked again for a state that somebody has spoken of.
const PAUSE: Duration = Duration::from_millis(200);

/// How long an old Raft may take to end.
const END: Duration = Duration::from_secs(5);

/// A Raft that runs, and the lineage that it belongs to.
pub(super) struct Running {
    pub(super) raft: Raft,
    pub(super) lineage: Lineage,
    /// Tells when it fails.
    pub(super) watch: JoinHandle<()>,
}

/// Somebody spoke of a lineage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    lineage: Lineage,
    from: NodeUid,
}

impl Heard {
    /// Nothing but one's own.
    pub(super) fn nothing(me: NodeUid) -> Self {
        Self { lineage: Lineage::default(), from: me }
    }

    /// The newest lineage that somebody spoke of.
    pub(super) fn lineage(&self) -> Lineage {
        self.lineage
    }
}

/// How a node comes into a lineage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It begins it, as its only voter.
    Begins,
    /// It learns from who has begun it.
    Learns,
}

impl Cluster {
    /// A peer is of a newer lineage: this node serves nothing until it is, too.
    pub(super) fn hear_of(&self, from: NodeUid, lineage: Lineage) {
        if self.inner.views.supersede(lineage) {
            tracing::warn!(%from, number = lineage.number, "the cluster was recovered without this node, which takes over the newer state now");
        }
        self.inner.heard.send_if_modified(|heard| {
            let newer = lineage > heard.lineage;
            if newer {
                *heard = Heard { lineage, from };
            }
            newer
        });
    }

    /// Takes over every newer lineage that is heard of.
    pub(super) async fn follow_lineages(self) {
        let mut heard = self.inner.heard.subscribe();
        loop {
            let news = *heard.borrow_and_update();
            let view = self.view();
            // What has cast this node out does not take it back; a lineage after that may.
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

    /// Asks the members that this node knows for a newer state, where no leader has spoken to it for long: what they
    /// have recovered may be without it, and its connections to them are as old as that.
    async fn ask_around(&self) {
        let view = self.view();
        if view.outside.is_some() || self.heard_from_leader_within(LONELY) {
            return;
        }
        for peer in view.state.live_members().map(|member| member.id).filter(|id| *id != view.me) {
            self.fetch_state(peer, Instant::now() + ASK).await;
        }
    }

    /// Asks for a state that is as new as what was heard of: first who spoke of it, then all.
    async fn take_over(&self, news: Heard) {
        if self.take_over_from(news).await {
            return;
        }
        let view = self.view();
        let mut peers: Vec<NodeId> = view.state.live_members().map(|member| member.id).collect();
        peers.retain(|id| *id != view.me);
        for peer in peers {
            self.fetch_state(peer, Instant::now() + ASK).await;
            if self.view().state.lineage >= news.lineage {
                return;
            }
        }
    }

    /// The same of who spoke of it alone, which may be a member of that lineage only. True if this node goes by the
    /// lineage then, or knows that it has no part in it.
    async fn take_over_from(&self, news: Heard) -> bool {
        if let Some(peer) = self.inner.network.linked(news.from) {
            self.fetch_state_from(peer, Instant::now() + ASK).await;
        }
        let view = self.view();
        view.state.lineage.max(view.outside.unwrap_or_default()) >= news.lineage
    }

    /// Before a recovery: takes over what another node has recovered, if it can still be had, and answers the newest
    /// lineage that was heard of.
    pub(super) async fn take_over_what_is_heard(&self) -> Lineage {
        let news = *self.inner.heard.borrow();
        if news.lineage > self.view().state.lineage {
            self.take_over_from(news).await;
        }
        news.lineage
    }

    /// Tells a peer of an older lineage about this one. The lineage may not have the peer as a member, so that nobody
    /// else would tell it. At most one message per peer is under way.
    pub(super) fn tell_lineage(&self, peer: NodeUid) {
        let lineage = self.view().state.lineage;
        if self.inner.told.lock().insert(peer, lineage).is_some_and(|told| told >= lineage) {
            return;
        }
        let this = self.clone();
        self.spawn(async move {
            if let (Some(to), Ok(message)) = (this.inner.network.linked(peer), codec::encode(&lineage)) {
                let deadline = Instant::now() + ASK;
                // An answer would say that the peer goes by it by now; the peer is told again until it does.
                drop(this.inner.network.call(to, kind::RECOVERED, message.into(), deadline).await);
            }
            this.inner.told.lock().remove(&peer);
        });
    }

    /// Asks a member for its state and takes it if it is newer. False if it gave no answer in time.
    pub(super) async fn fetch_state(&self, peer: NodeId, deadline: Instant) -> bool {
        match self.inner.book.peer(peer) {
            Some(peer) => self.fetch_state_from(peer, deadline).await,
            None => false,
        }
    }

    async fn fetch_state_from(&self, peer: PeerAddr, deadline: Instant) -> bool {
        let view = self.view();
        let Some(answer) = self.ask_state(peer, view.index(), deadline).await else { return false };
        if let Some(state) = answer {
            if state.cluster != view.state.cluster {
                return true;
            }
            if state.lineage == view.state.lineage {
                self.inner.views.offer(&state);
            } else if state.lineage > view.state.lineage {
                // A client's request may wait for this: the change goes on, and the wait ends by its deadline.
                let this = self.clone();
                let over =
                    annulus_ground::spawn_on(&self.inner.runtime, async move { this.adopt(*state).await });
                drop(timeout_at(deadline, over).await);
            }
        }
        true
    }

    /// A peer's state, if it has one behind an index and says so in time.
    pub(super) async fn state_of(
        &self,
        peer: NodeId,
        newer_than: u64,
        deadline: Instant,
    ) -> Option<Box<ClusterState>> {
        self.ask_state(self.inner.book.peer(peer)?, newer_than, deadline).await.flatten()
    }

    /// The same; `None` if there was no answer.
    async fn ask_state(&self, peer: PeerAddr, newer_than: u64, deadline: Instant) -> Option<FetchStateReply> {
        let (uid, payload) = (peer.uid, codec::encode(&FetchState { newer_than }).ok()?);
        let answer = self.inner.network.call(peer, FETCH_STATE, payload.into(), deadline).await.ok()?;
        let read = codec::decode::<FetchStateReply>(&answer);
        read.inspect_err(|error| tracing::warn!(peer = %uid, %error, "unreadable state of a peer")).ok()
    }

    /// Goes over to the lineage of a state that another node has begun.
    async fn adopt(&self, state: ClusterState) {
        let own = state.member(self.me()).map(|member| member.uid);
        if own != Some(self.uid()) {
            return self.cast_out(state.lineage);
        }
        self.inner.views.supersede(state.lineage);
        if let Err(error) = self.change_over(state, Part::Learns).await {
            self.end(Ended::Failed(error.to_string()));
        }
    }

    /// A newer lineage does not have this node as a member: it joined, or was removed, in a history that the
    /// recovery did not know. It serves nobody any more and changes nothing, and runs on, since what its guests
    /// keep in memory ends with it.
    pub(super) fn cast_out(&self, of: Lineage) {
        if self.inner.views.cast_out(of) {
            tracing::error!(
                number = of.number,
                "the cluster was recovered without this node, which is no member of it any more: it serves \
                 nothing, and keeps what it has in memory until it is stopped"
            );
        }
    }

    /// Ends the present Raft and begins one of another lineage. Does nothing if this node has gone
    /// over to that lineage, or a newer one, meanwhile.
    pub(super) async fn change_over(&self, state: ClusterState, part: Part) -> Result<(), ClusterError> {
        let this = self.clone();
        // On Raft's own runtime, and to its end, whatever becomes of who asked.
        let over = async move { this.change_over_here(state, part).await };
        annulus_ground::spawn_on(&self.inner.runtime, over)
            .await
            .unwrap_or_else(|error| Err(ClusterError::Raft(error.to_string())))
    }

    async fn change_over_here(&self, state: ClusterState, part: Part) -> Result<(), ClusterError> {
        let inner = &self.inner;
        let _turn = inner.turn.lock().await;
        let old = inner.running.load_full();
        if state.lineage <= old.lineage {
            return Ok(());
        }
        annulus_ground::point("lineage: changes over").await;
        let store = RaftStore::open(&inner.database, state.lineage, &inner.beside)?;
        if part == Part::Begins {
            StateMachine::begin(&store, &state, self.me().0).await?;
        }
        // From here on a restart goes on in the new lineage.
        inner.copy.write(&state);
        Syncer::start(inner.database.clone(), None).sync().await;

        old.watch.abort();
        if timeout(END, old.raft.shutdown()).await.is_err() {
            return Err(ClusterError::Raft("the former lineage's Raft does not end".into()));
        }
        inner.contact.clear();
        inner.views.offer(&state);
        inner.running.store(self.run_raft(store, state.lineage).await?);
        tracing::warn!(
            number = state.lineage.number,
            index = state.applied,
            ?part,
            "goes on in a new lineage"
        );
        Ok(())
    }

    /// Runs Raft over what a store holds.
    async fn run_raft(&self, store: RaftStore, lineage: Lineage) -> Result<Arc<Running>, ClusterError> {
        let links = self.inner.links(lineage);
        let raft =
            start_raft(self.me(), &links, &self.inner.database, store, &self.inner.views, true).await?;
        let watch = watch_raft(raft.clone(), self.inner.ended.clone());
        let watch = annulus_ground::spawn_on(&self.inner.runtime, watch);
        Ok(Arc::new(Running { raft, lineage, watch }))
    }
}

/// Starts Raft on the present runtime. `leads_on`: where it led before, it leads.
pub(super) async fn start_raft(
    me: NodeId,
    links: &RaftLinks,
    database: &annulus_data_dir::Store,
    store: RaftStore,
    views: &Arc<super::view::Views>,
    leads_on: bool,
) -> Result<Raft, ClusterError> {
    let name = views.load().state.cluster.to_string();
    let log = LogStore::new(database.clone(), store.clone());
    let log = if leads_on { log } else { log.without_leading(me) };
    let machine = StateMachine::open(store, views.clone())?;
    Raft::new(me.0, Arc::new(raft::config(name)), links.clone(), log, machine)
        .await
        .map_err(|error| ClusterError::Raft(error.to_string()))
}
