//! What the rest of the node sees of the cluster: one immutable state at a time.
//!
//! A view is only ever replaced by a newer one, by (lineage, index) (R2): at start it is the copy
//! that the node kept, then whatever Raft applies or a peer hands over, whichever is newer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use annulus_core::ids::{ModuleUid, NodeId};
use annulus_core::keyspace::PartitionId;
use annulus_core::ring::Partition;
use annulus_core::state::{ClusterState, Lineage, Member, MemberStatus, Module};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::storage::{StateSink, order};
use annulus_transport::PeerAddr;

/// An immutable copy of the committed state, with what the data path needs precomputed.
#[derive(Debug)]
pub struct View {
    /// The state as it was agreed on.
    pub state: ClusterState,
    /// This node.
    pub me: NodeId,
    /// The cluster has begun a newer lineage than this state's: nobody is served by it (R19).
    pub superseded: bool,
    /// That lineage, if it does not have this node: the node stays as it is, and has no say any more.
    pub outside: Option<Lineage>,
    modules: HashMap<String, ModuleUid>,
    peers: HashMap<NodeId, PeerAddr>,
}

impl View {
    /// A state as one node sees it.
    pub fn new(state: ClusterState, me: NodeId) -> Self {
        let modules = state.modules.values().map(|module| (module.name.clone(), module.uid)).collect();
        let peers = state.live_members().filter_map(|member| Some((member.id, peer(member)?))).collect();
        Self { state, me, superseded: false, outside: None, modules, peers }
    }

    /// A deployed module by name.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.state.modules.get(self.modules.get(name)?)
    }

    /// A member that is not removed.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.state.member(node)
    }

    /// How to reach a member that is not removed.
    pub fn peer(&self, node: NodeId) -> Option<PeerAddr> {
        self.peers.get(&node).cloned()
    }

    /// One partition of the ring.
    pub fn partition(&self, id: PartitionId) -> &Partition {
        self.state.ring.partition(id)
    }

    /// Index of the last command in it.
    pub fn index(&self) -> u64 {
        self.state.applied
    }

    /// May this node serve requests: is it, as far as it knows, a member that has caught up (R18)?
    pub fn serves(&self) -> bool {
        !self.superseded && self.member(self.me).is_some_and(|me| me.status != MemberStatus::Joining)
    }

    /// Was this node removed from the cluster?
    pub fn is_removed(&self) -> bool {
        self.state.members.get(&self.me).is_some_and(|me| me.status == MemberStatus::Removed)
    }
}

/// How to reach a member.
pub(super) fn peer(member: &Member) -> Option<PeerAddr> {
    // Nodes write resolved addresses; anything else in the table is of no use to anybody.
    let addr: SocketAddr = member.listen.parse().ok()?;
    Some(PeerAddr { uid: member.uid, addr })
}

/// The present view, and who waits for the next.
pub struct Views {
    me: NodeId,
    current: ArcSwap<View>,
    changed: watch::Sender<Arc<View>>,
    /// Held while a newer view takes the place of an older one.
    turn: Mutex<Known>,
}

/// What is known of lineages beside that of the present view.
#[derive(Default)]
struct Known {
    /// The newest heard of.
    heard: Lineage,
    /// The newest that does not have this node.
    outside: Option<Lineage>,
}

impl Known {
    /// A state as this node may use it.
    fn view(&self, state: ClusterState, me: NodeId) -> View {
        let outside = self.outside.filter(|outside| *outside >= state.lineage);
        let superseded = self.heard > state.lineage || outside.is_some();
        View { superseded, outside, ..View::new(state, me) }
    }
}

impl Views {
    /// Begins with a state.
    pub fn new(state: ClusterState, me: NodeId) -> Self {
        let view = Arc::new(View::new(state, me));
        Self {
            me,
            current: ArcSwap::new(view.clone()),
            changed: watch::Sender::new(view),
            turn: Mutex::default(),
        }
    }

    /// The present one.
    pub fn load(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// Changes with each newer one.
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.changed.subscribe()
    }

    /// Takes a state if it is newer.
    pub fn offer(&self, state: &ClusterState) {
        let known = self.turn.lock();
        if order(state) > order(&self.current.load().state) {
            self.replace(known.view(state.clone(), self.me));
        }
    }

    /// There is a newer lineage than that of the present view. False if that is no news.
    pub fn supersede(&self, lineage: Lineage) -> bool {
        let mut known = self.turn.lock();
        known.heard = lineage.max(known.heard);
        let present = self.current.load_full();
        let news = !present.superseded && known.heard > present.state.lineage;
        if news {
            self.replace(known.view(present.state.clone(), self.me));
        }
        news
    }

    /// This lineage, at least as new as that of the present view, does not have this node. False if that is
    /// no news.
    pub fn cast_out(&self, of: Lineage) -> bool {
        let mut known = self.turn.lock();
        let present = self.current.load_full();
        let news = of >= present.state.lineage && Some(of) > known.outside;
        if news {
            known.outside = Some(of);
            self.replace(known.view(present.state.clone(), self.me));
        }
        news
    }

    fn replace(&self, view: View) {
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
