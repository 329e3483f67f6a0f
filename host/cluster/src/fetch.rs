//! Whole states from peers, for callers that cannot wait for Raft. At most one fetch per peer runs at a time,
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

/// Fetches states from peers and adopts newer ones, of this lineage or of another.
pub(super) struct StateFetcher {
    me: NodeId,
    uid: NodeUid,
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    peers: Peers,
    supervisor: Arc<Supervisor>,
    tasks: Arc<Tasks>,
    ended: EndSignal,
    /// The fetches by peer. Bounded by the node ids that this cluster has assigned.
    fetches: parking_lot::Mutex<HashMap<NodeId, Arc<Fetch>>>,
}

/// The fetches from one peer.
#[derive(Default)]
struct Fetch {
    /// Locked by the running fetch.
    turn: tokio::sync::Mutex<()>,
    /// Number of fetches started.
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

    /// Wait for the entry of an index that a peer has announced, and fetch the peer's state at the same time
    /// (R2).
    pub(super) async fn learn_from(
        &self,
        peer: NodeId,
        index: u64,
        deadline: Instant,
    ) -> Result<Arc<View>, DeadlineExceeded> {
        tokio::select! {
            // Raft may deliver the entry first.
            biased;
            applied = self.views.wait_applied(index, deadline) => applied,
            () = self.fetch_once(peer, deadline) => self.views.wait_applied(index, deadline).await,
        }
    }

    /// Adopt the leader's state, if it is newer and arrives in time. Return false if no leader is known.
    pub(super) async fn learn_news(&self, deadline: Instant) -> bool {
        let Some(leader) = self.group.leader() else { return false };
        if leader != self.me {
            self.fetch_once(leader, deadline).await;
        }
        true
    }

    /// Adopt a peer's state, if it is newer and arrives in time. A fetch that another caller starts after
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

    /// Ask a member for its state, and adopt it if it is newer. Return false if the member has no known
    /// address or did not reply in time.
    pub(super) async fn fetch(&self, peer: NodeId, deadline: Instant) -> bool {
        match self.peers.book.peer(peer) {
            Some(peer) => self.fetch_from(peer, deadline).await,
            None => false,
        }
    }

    /// Ask the node that is connected under a uid, a member or not, as [`StateFetcher::fetch`] does.
    pub(super) async fn fetch_linked(&self, uid: NodeUid, deadline: Instant) -> bool {
        match self.peers.network.linked(uid) {
            Some(peer) => self.fetch_from(peer, deadline).await,
            None => false,
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
                // A client's request may wait for this. The wait ends at the deadline, and the adoption
                // continues.
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

    /// Ask a peer for its state, and return the reply; `None` if there was none.
    async fn ask(&self, peer: PeerAddr, newer_than: u64, deadline: Instant) -> Option<FetchStateReply> {
        let (uid, payload) = (peer.uid, codec::encode(&FetchState { newer_than }).ok()?);
        let answer = self.peers.network.call(peer, FETCH_STATE, payload.into(), deadline).await.ok()?;
        let read = codec::decode::<FetchStateReply>(&answer);
        let read = read
            .inspect_err(|error| tracing::warn!(peer = %uid, %error, "unreadable state of a peer"))
            .ok()?;
        if let Some(Err(why)) = read.as_ref().map(|state| state.check_sound()) {
            tracing::warn!(peer = %uid, why, "a peer's state breaks the rules of a state, and is ignored");
            return None;
        }
        Some(read)
    }

    /// Return a future that moves this node to the lineage of a state. Another node has started that lineage.
    /// The future ends with the supervisor's change, for which a stop waits.
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
