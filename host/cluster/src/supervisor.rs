//! Control of the running Raft: its start from a store, its failure, its replacement in place by the Raft of
//! a newer lineage (R19), and its stop.
//!
//! The log and vote of a former lineage stay on disk, in a separate keyspace, and are no longer used.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::state::{ClusterState, Lineage};
use annulus_core::version::Range;
use annulus_data_dir::{RESTORE, Store, database_trouble, obstacle};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::contact::LeaderContact;
use super::ended::{EndSignal, Ended};
use super::group::{RaftGroup, Running};
use super::network::RaftLinks;
use super::peers::Peers;
use super::raft::{self, Raft};
use super::storage::{LogStore, RaftStore, RingCopy, StateMachine, StoreError, Syncer};
use super::view::Views;

/// Longest wait for a former Raft to end.
const END: Duration = Duration::from_secs(5);

/// Describe an error of the store, with its remedy.
fn store_trouble(error: &StoreError) -> String {
    match error {
        StoreError::Read(source) => {
            format!("cannot read the database: {}", database_trouble(source, RESTORE))
        }
        StoreError::Mark { source, .. } => format!("{error}. {}", obstacle(source).unwrap_or(RESTORE)),
        damage => format!("{damage}. {RESTORE}"),
    }
}

/// The reason for which there is no control plane. The disk is unchanged, or one step further in a founding
/// that the next start continues.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The database cannot be read, or has lost something.
    #[error("{}", store_trouble(.0))]
    Store(#[from] StoreError),
    /// The database has no state of the node's cluster.
    #[error("the database holds no state of the cluster. {RESTORE}")]
    NoState,
    /// The first command does not found a cluster.
    #[error("cannot found a cluster: {0}")]
    Founding(String),
    /// The cluster uses a level that this build does not speak.
    #[error(
        "the cluster is at state level {level} and this build speaks {speaks}: start a build that \
         speaks it; nothing was changed"
    )]
    Level {
        /// The cluster's level, by this node's copy of its state.
        level: u32,
        /// Levels that the build speaks.
        speaks: Range,
    },
    /// The file of the authority's key cannot be read.
    #[error("{0}")]
    Authority(String),
    /// Raft does not start, or the former one does not end.
    #[error("the control plane does not start: {0}")]
    Raft(String),
}

/// The reason for which a node did not move to another lineage.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeOverError {
    /// The control plane is stopping. Nothing was changed.
    #[error("this node is stopping")]
    Stopping,
    /// The former Raft has taken entries since the state of the new lineage was chosen. A majority may have committed
    /// them. The former Raft continues.
    #[error("the log has grown since the state was chosen")]
    Grown,
    /// The change failed half way. The node cannot continue without a restart.
    #[error(transparent)]
    Failed(#[from] ClusterError),
}

impl From<StoreError> for ChangeOverError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

/// The way in which a node enters a lineage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineageRole {
    /// The node starts the lineage, as its only voter.
    Begins {
        /// The last index of the node's log before the state was chosen.
        seen: Option<u64>,
    },
    /// The node learns the state from the nodes that are in the lineage.
    Learns,
}

/// The parts of a Raft of this node that do not depend on its lineage.
#[derive(Clone)]
pub(super) struct RaftParts {
    pub(super) me: NodeId,
    pub(super) database: Store,
    /// Directory of the mark of Raft's promises.
    pub(super) beside: PathBuf,
    pub(super) views: Arc<Views>,
    pub(super) peers: Peers,
    pub(super) contact: Arc<LeaderContact>,
    pub(super) ended: EndSignal,
    /// Raft's own runtime.
    pub(super) runtime: Handle,
}

impl RaftParts {
    /// Open the store of a lineage.
    pub(super) fn store(&self, lineage: Lineage) -> Result<RaftStore, StoreError> {
        RaftStore::open(&self.database, lineage, &self.beside)
    }

    /// Run Raft over a store. If `leads_on` is true, the node resumes as leader if it led before.
    pub(super) async fn run(
        &self,
        store: RaftStore,
        lineage: Lineage,
        leads_on: bool,
    ) -> Result<Running, ClusterError> {
        let name = self.views.load().state.cluster.to_string();
        let log = LogStore::new(self.database.clone(), store.clone());
        let log = if leads_on { log } else { log.without_leading(self.me) };
        let machine = StateMachine::open(store.clone(), self.views.clone())?;
        let Peers { book, network } = self.peers.clone();
        let links = RaftLinks { network, book, contact: self.contact.clone(), lineage };
        let raft = Raft::new(self.me.0, Arc::new(raft::config(name)), links, log, machine)
            .await
            .map_err(|error| ClusterError::Raft(error.to_string()))?;
        let watch = annulus_ground::spawn_on(&self.runtime, watch(raft.clone(), self.ended.clone()));
        Ok(Running { raft, lineage, store, watch })
    }
}

/// Report the failure of a Raft. Apart from a shutdown, Raft ends only when its storage fails.
async fn watch(raft: Raft, ended: EndSignal) {
    let mut metrics = raft.metrics();
    let failed = metrics.wait_for(|metrics| metrics.running_state.is_err()).await;
    if let Ok(metrics) = failed
        && let Err(error) = &metrics.running_state
    {
        ended.raise(Ended::Failed(error.to_string()));
    }
}

/// Owner of the running Raft.
pub(super) struct Supervisor {
    parts: RaftParts,
    copy: RingCopy,
    group: Arc<RaftGroup>,
    /// Locked while Raft is replaced or stopped. True once it is stopped.
    stopped: Mutex<bool>,
}

impl Supervisor {
    pub(super) fn new(parts: RaftParts, copy: RingCopy, group: Arc<RaftGroup>) -> Self {
        Self { parts, copy, group, stopped: Mutex::new(false) }
    }

    /// End the current Raft and start one in the lineage of `state`. This has no effect if the node is in
    /// that lineage or a newer one by then.
    pub(super) async fn change_over(
        self: &Arc<Self>,
        state: ClusterState,
        role: LineageRole,
    ) -> Result<(), ChangeOverError> {
        let this = self.clone();
        // The change runs on Raft's runtime, and to its end even if the caller is cancelled, because a
        // half-made change would leave the node without a Raft. It is not among the tasks that a stop aborts;
        // the stop waits for it instead.
        let over = async move { this.change_over_here(state, role).await };
        annulus_ground::spawn_on(&self.parts.runtime, over)
            .await
            .unwrap_or_else(|error| Err(ClusterError::Raft(error.to_string()).into()))
    }

    async fn change_over_here(&self, state: ClusterState, role: LineageRole) -> Result<(), ChangeOverError> {
        let stopped = self.stopped.lock().await;
        if *stopped {
            return Err(ChangeOverError::Stopping);
        }
        let old = self.group.running();
        if state.lineage <= old.lineage {
            return Ok(());
        }
        let parts = &self.parts;
        annulus_ground::point("lineage: changes over").await;
        if let LineageRole::Begins { seen } = role {
            // From here on no majority of the former lineage includes this node. An entry that it has taken meanwhile may be
            // committed with its help, and would be missing from the new lineage.
            Self::end(&old).await?;
            if old.raft.metrics().borrow().last_log_index > seen {
                let store = parts.store(old.lineage)?;
                self.group.replace(parts.run(store, old.lineage, false).await?);
                return Err(ChangeOverError::Grown);
            }
        }
        let store = parts.store(state.lineage)?;
        if matches!(role, LineageRole::Begins { .. }) {
            StateMachine::begin(&store, &state, parts.me.0).await?;
        }
        // From here on a restart continues in the new lineage.
        self.copy.write(&state);
        Syncer::start(parts.database.clone(), None).sync().await;

        if role == LineageRole::Learns {
            Self::end(&old).await?;
        }
        parts.contact.clear();
        parts.views.offer(&state);
        self.group.replace(parts.run(store, state.lineage, true).await?);
        tracing::warn!(
            number = state.lineage.number,
            index = state.applied,
            part = ?role,
            "continues in a new lineage"
        );
        Ok(())
    }

    /// End the Raft of a lineage.
    async fn end(old: &Running) -> Result<(), ClusterError> {
        old.watch.abort();
        match timeout(END, old.raft.shutdown()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ClusterError::Raft("the former lineage's Raft does not end".into())),
        }
    }

    /// Stop Raft for good, after any change of lineage in progress.
    pub(super) async fn stop(&self) {
        let mut stopped = self.stopped.lock().await;
        *stopped = true;
        let running = self.group.running();
        running.watch.abort();
        // An error means that Raft has ended before.
        let _ = running.raft.shutdown().await;
    }
}
