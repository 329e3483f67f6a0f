//! Starting a node's control plane: from the disk, or by founding a cluster of one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::address::HostPort;
use annulus_core::ids::{NodeId, NodeUid, Start};
use annulus_core::state::{ClusterState, Command, Machine, Outcome, Refusal};
use annulus_core::version::{Range, Speaks};
use annulus_data_dir::{RESTORE, Store, database_trouble, obstacle};
use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::addresses::AddressBook;
use super::announce::Place;
use super::contact::Contact;
use super::lineage::{Heard, Running, start_raft};
use super::liveness::Liveness;
use super::meeting::Meeting;
use super::network::{ControlNetwork, RaftLinks};
use super::propose::ProposeError;
use super::raft::Raft;
use super::starts::{Found, Starts};
use super::storage::{RaftStore, RingCopy, StoreError, Syncer};
use super::view::Views;
use super::{Cluster, Ended, Inner, end};

/// How long the founder of a cluster may take to agree with itself.
const FOUNDING: Duration = Duration::from_secs(20);

/// What a control plane needs.
pub struct ClusterConfig {
    /// The node's database.
    pub database: Store,
    /// Directory of the note of what Raft has promised, beside the database and on its disk.
    pub beside: PathBuf,
    /// This start of the node.
    pub start: Start,
    /// This node.
    pub me: NodeId,
    /// Its data directory.
    pub uid: NodeUid,
    /// The address that peers reach it by.
    pub listen: SocketAddr,
    /// The name that this address was found by, to be looked up again and again: what it stands for may
    /// change while the node runs. None where the address was said itself.
    pub listen_name: Option<HostPort>,
    /// Where to look for other nodes as long as no leader is heard from.
    pub seeds: Vec<HostPort>,
    /// The address kept for HTTP.
    pub http: String,
    /// Where it says that it stands.
    pub place: Place,
    /// The way to the peers.
    pub network: Arc<dyn ControlNetwork>,
    /// What this node speaks.
    pub speaks: Speaks,
    /// The first command of a cluster ([`Command::Found`]), if this node is founding one and may
    /// not have finished.
    pub found: Option<Command>,
}

/// What is wrong with the store, and what to do about it.
fn store_trouble(error: &StoreError) -> String {
    match error {
        StoreError::Read(source) => {
            format!("cannot read the database: {}", database_trouble(source, RESTORE))
        }
        StoreError::Mark { source, .. } => format!("{error}. {}", obstacle(source).unwrap_or(RESTORE)),
        damage => format!("{damage}. {RESTORE}"),
    }
}

/// Why there is no control plane. What is on disk is as it was, or a step further in a founding
/// that the next start goes on with.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The database cannot be read, or is not what it was.
    #[error("{}", store_trouble(.0))]
    Store(#[from] StoreError),
    /// The database has no state of the cluster that the node belongs to.
    #[error("the database holds no state of the cluster. {RESTORE}")]
    NoState,
    /// The first command makes no cluster.
    #[error("cannot found a cluster: {0}")]
    Founding(String),
    /// The cluster has gone on to a level that this build does not speak.
    #[error(
        "the cluster is at state level {level} and this build speaks {speaks}: start a build that \
         speaks it; nothing was changed"
    )]
    Level {
        /// The cluster's, by this node's copy of its state.
        level: u32,
        /// The build's.
        speaks: Range,
    },
    /// Raft refuses to start.
    #[error("the control plane does not start: {0}")]
    Raft(String),
}

/// Keeps a state durably as the node's copy, in a database that no control plane uses yet: the
/// last step but one of a join.
pub async fn seed(database: &Store, state: &ClusterState) -> Result<(), StoreError> {
    RingCopy::open(database)?.write(state);
    Syncer::start(database.clone(), None).sync().await;
    Ok(())
}

impl Cluster {
    /// Starts the control plane on the present runtime, which must be Raft's own.
    pub fn start(config: ClusterConfig) -> BoxFuture<'static, Result<Self, ClusterError>> {
        Box::pin(async move {
            let ClusterConfig {
                database,
                beside,
                start,
                me,
                uid,
                listen,
                listen_name,
                seeds,
                http,
                place,
                network,
                speaks,
                found,
            } = config;
            let copy = RingCopy::open(&database)?;
            let state = match (copy.read()?, &found) {
                (Some(state), _) => state,
                (None, Some(found)) => provisional(found)?,
                (None, None) => return Err(ClusterError::NoState),
            };
            if !speaks.levels.has(state.level) {
                return Err(ClusterError::Level { level: state.level, speaks: speaks.levels });
            }
            let lineage = state.lineage;
            let views = Arc::new(Views::new(state, me));
            let book = Arc::new(AddressBook::new(views.clone()));
            let contact = Arc::new(Contact::default());

            let store = RaftStore::open(&database, lineage, &beside)?;
            let (last, vote) = (store.last()?, store.vote()?);
            let starts = Starts::open(&database).map_err(StoreError::from)?;
            let (network, ended) = (network.clone(), watch::Sender::new(None));
            let links =
                RaftLinks { network: network.clone(), book: book.clone(), contact: contact.clone(), lineage };
            // Nobody to ask: the founder, and who is alone.
            let alone = views.load().state.live_members().all(|member| member.id == me);
            let raft = start_raft(me, &links, &database, store, &views, alone).await?;
            raft.runtime_config().elect(alone);
            let runtime = Handle::current();
            let watch = annulus_ground::spawn_on(&runtime, watch_raft(raft.clone(), ended.clone()));

            let (liveness, detector) = Liveness::new(me, uid, speaks);
            let cluster = Self {
                inner: Arc::new(Inner {
                    me,
                    uid,
                    speaks,
                    views,
                    book,
                    meeting: Meeting::new(uid, listen, start.number, seeds),
                    contact,
                    liveness,
                    network,
                    database: database.clone(),
                    copy: copy.clone(),
                    beside,
                    starts,
                    takes_part: watch::Sender::new(alone),
                    needs: ArcSwapOption::empty(),
                    running: ArcSwap::from_pointee(Running { raft, lineage, watch }),
                    turn: Default::default(),
                    heard: watch::Sender::new(Heard::nothing(uid)),
                    told: parking_lot::Mutex::default(),
                    rivals: Default::default(),
                    growth: Default::default(),
                    fetches: Default::default(),
                    runtime,
                    ended,
                    tasks: Default::default(),
                }),
            };
            if let Some(found) = found {
                cluster.found(found).await?;
                copy.write(&cluster.view().state);
                Syncer::start(database, None).sync().await;
            }
            cluster.spawn(keep_copy(cluster.watch(), copy));
            cluster.spawn(cluster.clone().follow_lineages());
            cluster.spawn(cluster.clone().keep_announcing(http, place));
            cluster.spawn(cluster.clone().keep_meeting());
            if let Some(name) = listen_name.filter(|name| name.literal().is_none()) {
                cluster.spawn(cluster.clone().follow_name(name));
            }
            cluster.spawn(cluster.clone().come_in(Found { me, start, lineage, last, vote }));
            cluster.spawn(cluster.clone().run_claimant());
            cluster.spawn(detector.run(
                cluster.watch(),
                cluster.inner.book.clone(),
                cluster.inner.network.clone(),
            ));
            Ok(cluster)
        })
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.inner.tasks.lock();
        // Some are short, and a peer may cause one every few seconds.
        tasks.retain(|task| !task.is_finished());
        tasks.push(annulus_ground::spawn_on(&self.inner.runtime, task));
    }

    /// Makes a cluster of this node alone, or finishes making it.
    async fn found(&self, found: Command) -> Result<(), ClusterError> {
        let failed = |error: &dyn std::fmt::Display| ClusterError::Founding(error.to_string());
        let deadline = Instant::now() + FOUNDING;
        if !self.raft().is_initialized().await.map_err(|error| failed(&error))? {
            let founder = BTreeSet::from([self.me().0]);
            self.raft().initialize(founder).await.map_err(|error| failed(&error))?;
        }
        match self.propose(found, deadline).await {
            // Done before a crash, and replayed since.
            Ok((_, Outcome::Done)) | Err(ProposeError::Refused(Refusal::Founding)) => {}
            Ok((_, other)) => return Err(failed(&format!("{other:?}"))),
            Err(error) => return Err(failed(&error)),
        }
        // The view that was made up for the founding has index 0, any real one more.
        self.wait_applied(1, deadline).await.map(drop).map_err(|error| failed(&error))
    }
}

/// Raft ends only when it is told to or when its storage fails.
pub(super) async fn watch_raft(raft: Raft, ended: watch::Sender<Option<Ended>>) {
    let mut metrics = raft.metrics();
    let failed = metrics.wait_for(|metrics| metrics.running_state.is_err()).await;
    if let Ok(metrics) = failed
        && let Err(error) = &metrics.running_state
    {
        end(&ended, Ended::Failed(error.to_string()));
    }
}

/// The state that a founding will lead to: something to start from, replaced by the real one.
fn provisional(found: &Command) -> Result<ClusterState, ClusterError> {
    let mut machine = Machine::default();
    let outcome = machine.apply(0, found);
    machine.state.ok_or_else(|| {
        ClusterError::Founding(match outcome {
            Outcome::Refused(refusal) => refusal.to_string(),
            other => format!("{other:?}"),
        })
    })
}

/// Keeps the newest view on disk. Views that come faster than they are written are skipped.
async fn keep_copy(mut views: watch::Receiver<Arc<super::View>>, copy: RingCopy) {
    // Marked as seen only here: what came before the first change is written too.
    loop {
        let view = views.borrow_and_update().clone();
        copy.write(&view.state);
        if views.changed().await.is_err() {
            return;
        }
    }
}
