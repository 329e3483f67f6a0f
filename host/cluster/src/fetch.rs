//! Whole states from peers, for callers that cannot wait for Raft. At most one fetch per peer is under way,
//! however many callers wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_core::codec;
use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::state::ClusterState;
use annulus_transport::PeerAddr;
use tokio::time::{Instant, timeout_at};

use super::ended::{EndSignal, Ended};
use super::group::RaftGroup;
use super::messages::{FETCH_STATE, FetchState, FetchStateReply};
use super::peers::Peers;
use super::supervisor::{ChangeOverError, LineageRole, Supervisor};
use super::tasks::Tasks;
use super::view::{DeadlineExceeded, View, Views};

/// Fetches states from peers and takes over newer ones, of this lineage or of another.
pub(super) struct StateFetcher {
    me: NodeId,
    uid: NodeUid,
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    peers: Peers,
    supervisor: Arc<Supervisor>,
    tasks: Arc<Tasks>,
    ended: EndSignal,
    /// By peer; bounded by the node ids that this cluster has given out.
    fetches: parking_lot::Mutex<HashMap<NodeId, Arc<Fetch>>>,
}

/// The fetches from one peer.
#[derive(Default)]
struct Fetch {
    /// Locked by the fetch that is under way.
    turn: tokio::sync::Mutex<()>,
    /// Number of fetches begun.
    begun: AtomicU64,
    /// Number of the newest fetch that was answered.
    answered: AtomicU64,
}

impl StateFetcher {
    pub(super) fn new(
        (me, uid): (NodeId, NodeUid),
        views: Arc<Views>,
        group: Arc<RaftGroup>,
        peers: Peers,
        supervisor: Arc<Supervisor>,
        (tasks, ended): (Arc<Tasks>, EndSignal),
    ) -> Self {
        Self { me, uid, views, group, peers, supervisor, tasks, ended, fetches: Default::default() }
    }

    /// Wait for the entry of an index that a peer has announced, and fetch the peer's state meanwhile (R2).
    pub(super) async fn learn_from(
        &self,
        peer: NodeId,
        index: u64,
        deadline: Instant,
    ) -> Result<Arc<View>, DeadlineExceeded> {
        tokio::select! {
            // Raft may bring it first.
            biased;
            applied = self.views.wait_applied(index, deadline) => applied,
            () = self.fetch_once(peer, deadline) => self.views.wait_applied(index, deadline).await,
        }
    }

    /// Take the leader's state, if it is newer and arrives in time. Return false if no leader is known.
    pub(super) async fn learn_news(&self, deadline: Instant) -> bool {
        let Some(leader) = self.group.leader() else { return false };
        if leader != self.me {
            self.fetch_once(leader, deadline).await;
        }
        true
    }

    /// Take a peer's state, if it is newer and arrives in time. A fetch that another caller begins after
    /// this call serves this call as well.
    pub(super) async fn fetch_once(&self, peer: NodeId, deadline: Instant) {
        let fetch = self.fetches.lock().entry(peer).or_default().clone();
        let before = fetch.begun.load(Ordering::Acquire);
        let Ok(_turn) = timeout_at(deadline, fetch.turn.lock()).await else { return };
        if fetch.answered.load(Ordering::Acquire) > before {
            return;
        }
        let number = fetch.begun.fetch_add(1, Ordering::AcqRel) + 1;
        if self.fetch(peer, deadline).await {
            fetch.answered.store(number, Ordering::Release);
        }
    }

    /// Ask a member for its state and take it if it is newer. False if there was no reply in time.
    pub(super) async fn fetch(&self, peer: NodeId, deadline: Instant) -> bool {
        match self.peers.book.peer(peer) {
            Some(peer) => self.fetch_from(peer, deadline).await,
            None => false,
        }
    }

    /// Ask whichever node is connected under a uid, a member or not, as [`StateFetcher::fetch`] does.
    pub(super) async fn fetch_linked(&self, uid: NodeUid, deadline: Instant) {
        if let Some(peer) = self.peers.network.linked(uid) {
            self.fetch_from(peer, deadline).await;
        }
    }

    async fn fetch_from(&self, peer: PeerAddr, deadline: Instant) -> bool {
        let view = self.views.load();
        let Some(answer) = self.ask(peer, view.index(), deadline).await else { return false };
        if let Some(state) = answer {
            if state.cluster != view.state.cluster {
                return true;
            }
            if state.lineage == view.state.lineage {
                self.views.offer(&state);
            } else if state.lineage > view.state.lineage {
                // A client's request may wait for this: its wait ends by the deadline, the adoption continues.
                let adoption = self.adoption(*state);
                let over = annulus_ground::spawn_on(self.tasks.runtime(), adoption);
                drop(timeout_at(deadline, over).await);
            }
        }
        true
    }

    /// Return a peer's state, if it is newer than an index and arrives in time.
    pub(super) async fn state_of(
        &self,
        peer: NodeId,
        newer_than: u64,
        deadline: Instant,
    ) -> Option<Box<ClusterState>> {
        self.ask(self.peers.book.peer(peer)?, newer_than, deadline).await.flatten()
    }

    /// The peer's reply; `None` if there was none.
    async fn ask(&self, peer: PeerAddr, newer_than: u64, deadline: Instant) -> Option<FetchStateReply> {
        let (uid, payload) = (peer.uid, codec::encode(&FetchState { newer_than }).ok()?);
        let answer = self.peers.network.call(peer, FETCH_STATE, payload.into(), deadline).await.ok()?;
        let read = codec::decode::<FetchStateReply>(&answer);
        read.inspect_err(|error| tracing::warn!(peer = %uid, %error, "unreadable state of a peer")).ok()
    }

    /// Move to the lineage of a state that another node has begun. It ends by itself, with the change that
    /// the supervisor makes and a stop waits for.
    fn adoption(&self, state: ClusterState) -> impl Future<Output = ()> + Send + use<> {
        let own = state.member(self.me).map(|member| member.uid);
        let is_member = own == Some(self.uid);
        let (views, supervisor, ended) = (self.views.clone(), self.supervisor.clone(), self.ended.clone());
        async move {
            if !is_member {
                return views.cast_out(state.lineage);
            }
            views.supersede(state.lineage);
            if let Err(ChangeOverError::Failed(error)) =
                supervisor.change_over(state, LineageRole::Learns).await
            {
                ended.raise(Ended::Failed(error.to_string()));
            }
        }
    }
}
