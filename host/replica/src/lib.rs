//! Modules with several replicas: a coordinator runs a command once, and the other replicas agree.
//!
//! The coordinator is the first member that can be reached and whose store is complete (R9). It runs the command on its
//! own vnode. The items that a write has changed go to the other members, which merge them, and the caller is answered
//! once enough members have them on disk; a read is answered once enough members have the same items. When and by whom,
//! core's machines decide (`quorum`); this package carries out their steps.
//!
//! `coordinate` runs commands, `agree` reads of a quorum, and `spread` sends the items of a write. `build` makes stores
//! complete, `arrive` reports those of pending transfers, and `catch_up` compares a replica with the others after an
//! absence. `hints` keeps what members that cannot be reached lack. `serve` answers other replicas, `ask` asks them.

mod agree;
mod arrive;
mod ask;
mod build;
mod catch_up;
mod coordinate;
mod hints;
mod serve;
mod spread;

use std::collections::BTreeMap;
use std::sync::Arc;

use annulus_cluster::{Cluster, View};
use annulus_core::ids::{NodeId, TransferId};
use annulus_core::quorum::Group;
use annulus_ground::Tasks;
use annulus_modules::Modules;
use annulus_transport::Transport;
use annulus_vnode::{Master, ReplicaId, ReplicaStore};
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use catch_up::Behind;
pub use coordinate::Work;

/// The replicas of a node. Cheap to clone.
#[derive(Clone)]
pub struct Replicas {
    inner: Arc<Inner>,
}

/// The stores of a node for modules with several replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of all of them.
    pub stores: usize,
    /// Number of those that are built from others, because they have lost their items (R5).
    pub building: usize,
    /// Number of those that are compared with others, because they may have missed writes or their set gets smaller.
    pub behind: usize,
    /// Number of partitions of which this node keeps items for members at other nodes (R6).
    pub hints: usize,
}

struct Inner {
    cluster: Cluster,
    transport: Transport,
    modules: Modules,
    master: Master,
    behind: Behind,
    /// The complete stores that have what the others have, for the transfer that makes their set smaller.
    levelled: Mutex<BTreeMap<ReplicaId, (TransferId, ReplicaStore)>>,
    /// Notified when a store has become complete, or level with the others.
    completed: Notify,
    /// Notified when this node keeps a write for another.
    hinted: Notify,
    /// Held while a write is let into a hint.
    lets_in: RwLock<()>,
    tasks: Tasks,
}

impl Replicas {
    /// Create the replicas of this node.
    pub fn new(cluster: Cluster, transport: Transport, modules: Modules, master: Master) -> Self {
        let (behind, levelled) = (Behind::default(), Mutex::default());
        let (completed, hinted, lets_in, tasks) =
            (Notify::new(), Notify::new(), RwLock::new(()), Tasks::default());
        let inner = Inner {
            cluster,
            transport,
            modules,
            master,
            behind,
            levelled,
            completed,
            hinted,
            lets_in,
            tasks,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Make stores complete that are not, and have all of them catch up, from now on.
    pub fn start(&self) {
        self.note_new(true);
        self.inner.tasks.spawn(self.clone().keep_building());
        self.inner.tasks.spawn(self.clone().keep_reporting());
        self.inner.tasks.spawn(self.clone().keep_delivering());
    }

    /// End the tasks that make stores complete. Requests in progress end by their deadlines.
    pub fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.inner.tasks.stop())
    }

    /// Return the number of this node's stores.
    pub fn counts(&self) -> Counts {
        let master = &self.inner.master;
        let (stores, building) = (master.replicas().len(), master.building().len());
        let behind = self.inner.behind.next().len() + self.to_level().len();
        Counts { stores, building, behind, hints: master.hints().len() }
    }

    /// Return the group of a replica by a view; `None` if the module is not deployed there.
    fn group(view: &View, id: ReplicaId) -> Option<Group> {
        let module = view.state.modules.get(&id.module)?;
        Some(Group::of(view.state.ring.get(id.partition)?, usize::from(module.n)))
    }

    /// Learn the group at a version or a later one, from a node that has told of it. `None` if that fails. Before
    /// state level 7 it also fails if that is the number of a transfer that was dropped: the other node has an older state
    /// then, although its version is the higher one.
    async fn learn(&self, from: NodeId, id: ReplicaId, version: u64, deadline: Instant) -> Option<Group> {
        let cluster = &self.inner.cluster;
        if cluster.view().index() < version {
            cluster.learn_from(from, version, deadline).await.ok()?;
        }
        Self::group(&cluster.view(), id).filter(|group| group.version >= version)
    }

    /// Return true if a node can be reached, as far as this node knows.
    fn is_up(&self, view: &View, node: NodeId) -> bool {
        node == view.me || view.member(node).is_some_and(|member| self.inner.transport.is_up(member.uid))
    }
}
