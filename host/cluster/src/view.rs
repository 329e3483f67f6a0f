//! The committed state for the rest of the node, as one immutable copy at a time.
//!
//! A view is only ever replaced by a newer one, ordered by (lineage, index) (R2). The first one is the copy
//! on this node's disk; the next ones are states that Raft applies or that a peer sends, whichever is newer.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use annulus_core::ids::{ModuleUid, NodeId, NodeUid};
use annulus_core::keyspace::PartitionId;
use annulus_core::ring::Partition;
use annulus_core::state::{ClusterState, Lineage, Member, MemberStatus, Module};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::storage::{StateSink, order};
use annulus_transport::PeerAddr;

/// The deadline passed first. The entry may be applied later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline exceeded while waiting for entry {index} of the cluster's log")]
pub struct DeadlineExceeded {
    /// Index of the awaited entry.
    pub index: u64,
}

/// An immutable copy of the committed state, with lookups for the data path precomputed.
#[derive(Debug)]
pub struct View {
    /// The committed state.
    pub state: ClusterState,
    /// This node.
    pub me: NodeId,
    /// True if the cluster has started a newer lineage than this state's. No request is then served with this
    /// view (R19).
    pub superseded: bool,
    /// The newer lineage, if this node is not a member of it. The node then keeps its state, and may not
    /// propose.
    pub outside: Option<Lineage>,
    modules: HashMap<String, ModuleUid>,
    peers: HashMap<NodeId, PeerAddr>,
    /// The uids of the members that are not removed.
    uids: HashSet<NodeUid>,
}

impl View {
    /// Build the view of a state for one node.
    pub fn new(state: ClusterState, me: NodeId) -> Self {
        let modules = state.modules.values().map(|module| (module.name.clone(), module.uid)).collect();
        let peers = state.live_members().filter_map(|member| Some((member.id, peer(member)?))).collect();
        let uids = state.live_members().map(|member| member.uid).collect();
        Self { state, me, superseded: false, outside: None, modules, peers, uids }
    }

    /// Find a deployed module by name.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.state.modules.get(self.modules.get(name)?)
    }

    /// Find a member that is not removed.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.state.member(node)
    }

    /// Return true if the node of a data directory is a member that is not removed. Cheap enough for every request.
    pub fn has(&self, uid: NodeUid) -> bool {
        self.uids.contains(&uid)
    }

    /// Return the address of a member that is not removed.
    pub fn peer(&self, node: NodeId) -> Option<PeerAddr> {
        self.peers.get(&node).cloned()
    }

    /// Find a partition of the ring.
    pub fn partition(&self, id: PartitionId) -> &Partition {
        self.state.ring.partition(id)
    }

    /// Return the index of the last applied command.
    pub fn index(&self) -> u64 {
        self.state.applied
    }

    /// Return true if this node may serve requests. For that it must be a member that has caught up, as far
    /// as it knows (R18).
    pub fn serves(&self) -> bool {
        !self.superseded && self.member(self.me).is_some_and(|me| me.status != MemberStatus::Joining)
    }

    /// Return true if this node was removed from the cluster.
    pub fn is_removed(&self) -> bool {
        self.state.members.get(&self.me).is_some_and(|me| me.status == MemberStatus::Removed)
    }
}

/// Return the address of a member.
pub(super) fn peer(member: &Member) -> Option<PeerAddr> {
    // Nodes write resolved addresses. Any other text in the table cannot be used.
    let addr: SocketAddr = member.listen.parse().ok()?;
    Some(PeerAddr { uid: member.uid, addr })
}

/// The current view, and its subscribers.
pub struct Views {
    me: NodeId,
    current: ArcSwap<View>,
    /// Holds one view, so a slow subscriber skips to the newest.
    changed: watch::Sender<Arc<View>>,
    /// Locked while a newer view replaces an older one.
    newer: Mutex<NewerLineages>,
}

/// Lineages that peers have reported, other than the current view's.
#[derive(Default)]
struct NewerLineages {
    /// The newest one.
    heard: Lineage,
    /// The newest one that does not have this node as a member.
    outside: Option<Lineage>,
}

impl NewerLineages {
    /// Build the view of a state, marked if a newer lineage is known.
    fn view(&self, state: ClusterState, me: NodeId) -> View {
        let outside = self.outside.filter(|outside| *outside >= state.lineage);
        let superseded = self.heard > state.lineage || outside.is_some();
        View { superseded, outside, ..View::new(state, me) }
    }
}

impl Views {
    /// Create the first view from a state.
    pub fn new(state: ClusterState, me: NodeId) -> Self {
        let view = Arc::new(View::new(state, me));
        Self {
            me,
            current: ArcSwap::new(view.clone()),
            changed: watch::Sender::new(view),
            newer: Mutex::default(),
        }
    }

    /// Return the current view.
    pub fn load(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// Subscribe to newer views.
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.changed.subscribe()
    }

    /// Wait until the view includes the entry of an index.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<Arc<View>, DeadlineExceeded> {
        let mut views = self.subscribe();
        let waited = timeout_at(deadline, views.wait_for(|view| view.index() >= index)).await;
        match waited {
            Ok(Ok(view)) => Ok(view.clone()),
            _ => Err(DeadlineExceeded { index }),
        }
    }

    /// Adopt a state if it is newer than the current view.
    pub fn offer(&self, state: &ClusterState) {
        let newer = self.newer.lock();
        if order(state) > order(&self.current.load().state) {
            self.replace(newer.view(state.clone(), self.me));
        }
    }

    /// Record that a lineage exists, and mark the view as superseded if the lineage is newer. Return true if
    /// the view was not marked before.
    pub fn supersede(&self, lineage: Lineage) -> bool {
        let mut newer = self.newer.lock();
        newer.heard = lineage.max(newer.heard);
        let current = self.current.load_full();
        let news = !current.superseded && newer.heard > current.state.lineage;
        if news {
            self.replace(newer.view(current.state.clone(), self.me));
        }
        news
    }

    /// Record that a lineage does not include this node, because the node joined, or was removed, in a
    /// history unknown to the recovery. The node no longer serves or changes anything. It continues to run,
    /// because its guests' state in memory would end with it. A lineage older than the view's is ignored.
    pub fn cast_out(&self, of: Lineage) {
        let mut newer = self.newer.lock();
        let current = self.current.load_full();
        if of < current.state.lineage || Some(of) <= newer.outside {
            return;
        }
        newer.outside = Some(of);
        self.replace(newer.view(current.state.clone(), self.me));
        drop(newer);
        tracing::error!(
            number = of.number,
            "the cluster was recovered without this node, which is no longer a member of it: it serves \
             nothing, and keeps what it has in memory until it is stopped"
        );
    }

    fn replace(&self, view: View) {
        debug_assert!(
            order(&view.state) >= order(&self.current.load().state),
            "a view is only replaced by a newer one"
        );
        let view = Arc::new(view);
        self.current.store(view.clone());
        self.changed.send_replace(view);
    }
}

impl StateSink for Views {
    fn committed(&self, state: &ClusterState) {
        self.offer(state);
    }
}
