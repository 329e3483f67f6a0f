//! The start of a node's control plane, from its disk or by founding a single-node cluster.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::address::HostPort;
use annulus_core::ids::{NodeId, NodeUid, Start};
use annulus_core::state::{ClusterState, Command, Machine, Outcome, Refusal};
use annulus_core::version::Speaks;
use annulus_data_dir::{AuthorityFile, Store};
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::address_exchange::AddressExchange;
use super::addresses::{AddressBook, Sighting, Stamp};
use super::announce::{Announcer, Place};
use super::authority::Authorities;
use super::change::Changes;
use super::claimant::Claimant;
use super::cluster::{Cluster, Parts};
use super::contact::LeaderContact;
use super::ended::EndSignal;
use super::evidence::DiskState;
use super::fetch::StateFetcher;
use super::group::RaftGroup;
use super::join::Admission;
use super::lineage::Lineages;
use super::liveness::Liveness;
use super::network::ControlNetwork;
use super::participation::Participation;
use super::peers::Peers;
use super::propose::{ProposeError, Proposer};
use super::recover::Recoverer;
use super::seen_starts::SeenStarts;
use super::start_check::StartCheck;
use super::storage::{RingCopy, StoreError, Syncer};
use super::supervisor::{ClusterError, RaftParts, Supervisor};
use super::tasks::Tasks;
use super::versions::Versions;
use super::view::{View, Views};

/// Longest time for the founder of a cluster to commit the first command.
const FOUNDING: Duration = Duration::from_secs(20);

/// Configuration of a control plane.
pub struct ClusterConfig {
    /// The node's database.
    pub database: Store,
    /// Directory of the mark of Raft's promises, beside the database and on its disk.
    pub beside: PathBuf,
    /// This start of the node.
    pub start: Start,
    /// Id of this node.
    pub me: NodeId,
    /// Id of its data directory.
    pub uid: NodeUid,
    /// The node's address for its peers.
    pub listen: SocketAddr,
    /// The name that `listen` was resolved from, to be resolved again while the node runs. `None` if the
    /// address itself was given.
    pub listen_name: Option<HostPort>,
    /// Addresses at which to look for other nodes while there is no leader.
    pub seeds: Vec<HostPort>,
    /// The address reserved for HTTP.
    pub http: String,
    /// Zone and weight, if they were given.
    pub place: Place,
    /// The network to the peers.
    pub network: Arc<dyn ControlNetwork>,
    /// Versions that this build speaks.
    pub speaks: Speaks,
    /// The file of the authority's key.
    pub authority: AuthorityFile,
    /// The first command of a cluster ([`Command::Found`]), if this node is founding one and may not have
    /// finished.
    pub found: Option<Command>,
}

/// Store a state durably as the node's copy, in a database that no control plane uses yet: the last step but
/// one of a join.
pub async fn seed(database: &Store, state: &ClusterState) -> Result<(), StoreError> {
    RingCopy::open(database)?.write(state);
    Syncer::start(database.clone(), None).sync().await;
    Ok(())
}

impl Cluster {
    /// Start the control plane on the current runtime, which must be Raft's own.
    pub fn start(config: ClusterConfig) -> BoxFuture<'static, Result<Self, ClusterError>> {
        Box::pin(start(config))
    }
}

async fn start(config: ClusterConfig) -> Result<Cluster, ClusterError> {
    let (me, uid, speaks) = (config.me, config.uid, config.speaks);
    let (database, network) = (&config.database, config.network);
    let copy = RingCopy::open(database)?;
    let state = match (copy.read()?, &config.found) {
        (Some(state), _) => state,
        (None, Some(found)) => provisional(found)?,
        (None, None) => return Err(ClusterError::NoState),
    };
    if !speaks.levels.has(state.level) {
        return Err(ClusterError::Level { level: state.level, speaks: speaks.levels });
    }
    let lineage = state.lineage;
    // A node without peers has nobody to ask whether its disk is the newest.
    let alone = state.live_members().all(|member| member.id == me);
    let views = Arc::new(Views::new(state, me));
    let book = Arc::new(AddressBook::new(views.clone()));
    let peers = Peers { book: book.clone(), network: network.clone() };
    let contact = Arc::new(LeaderContact::default());
    let ended = EndSignal::new();
    let runtime = Handle::current();

    let raft_parts = RaftParts {
        me,
        database: database.clone(),
        beside: config.beside,
        views: views.clone(),
        peers: peers.clone(),
        contact: contact.clone(),
        ended: ended.clone(),
        runtime: runtime.clone(),
    };
    let store = raft_parts.store(lineage)?;
    let disk = DiskState { me, start: config.start, lineage, last: store.last()?, vote: store.vote()? };
    let seen = SeenStarts::open(database).map_err(StoreError::from)?;
    let running = raft_parts.run(store, lineage, alone).await?;
    running.raft.runtime_config().elect(alone);

    let tasks = Arc::new(Tasks::new(runtime));
    let group = Arc::new(RaftGroup::new(me, contact, running));
    let versions = Arc::new(Versions::new(me, speaks, views.clone(), network.clone()));
    let proposer = Arc::new(Proposer::new(me, views.clone(), group.clone(), peers.clone(), versions.clone()));
    let supervisor = Arc::new(Supervisor::new(raft_parts, copy.clone(), group.clone()));
    let fetcher = Arc::new(StateFetcher::new(
        (me, uid),
        views.clone(),
        group.clone(),
        peers.clone(),
        supervisor.clone(),
        (tasks.clone(), ended.clone()),
    ));
    let lineages = Arc::new(Lineages::new(
        uid,
        views.clone(),
        group.clone(),
        peers.clone(),
        fetcher.clone(),
        tasks.clone(),
    ));
    let participation = Arc::new(Participation::new(alone));
    let start_check = Arc::new(StartCheck::new(
        me,
        views.clone(),
        group.clone(),
        peers.clone(),
        seen,
        participation.clone(),
        (tasks.clone(), ended.clone()),
    ));
    let exchange = Arc::new(AddressExchange::new(
        Sighting { uid, addr: config.listen, stamp: Stamp { start: config.start.number, turn: 0 } },
        config.seeds,
        views.clone(),
        group.clone(),
        peers.clone(),
        fetcher.clone(),
        tasks.clone(),
    ));
    let (liveness, detector) = Liveness::new(me, uid, speaks);
    let authorities = Authorities::open(views.clone(), group.clone(), peers.clone(), config.authority)
        .map_err(|error| ClusterError::Authority(error.to_string()))?;
    let authorities = Arc::new(authorities);
    let claimant = Claimant::new(
        me,
        views.clone(),
        group.clone(),
        proposer.clone(),
        versions.clone(),
        authorities.clone(),
        peers.clone(),
    );
    let announcer = Announcer {
        views: views.clone(),
        group: group.clone(),
        peers: peers.clone(),
        proposer: proposer.clone(),
        exchange: exchange.clone(),
        ended: ended.clone(),
        http: config.http,
        place: config.place,
    };
    let recoverer = Recoverer {
        me,
        views: views.clone(),
        group: group.clone(),
        peers,
        fetcher: fetcher.clone(),
        lineages: lineages.clone(),
        supervisor: supervisor.clone(),
        ended: ended.clone(),
    };

    if let Some(command) = config.found {
        found(me, command, &group, &proposer).await?;
        copy.write(&views.load().state);
        Syncer::start(config.database, None).sync().await;
    }
    tasks.spawn(keep_copy(views.subscribe(), copy.clone()));
    tasks.spawn(lineages.clone().follow());
    tasks.spawn(announcer.run());
    tasks.spawn(exchange.clone().run());
    if let Some(name) = config.listen_name.filter(|name| name.literal().is_none()) {
        tasks.spawn(exchange.clone().follow_name(name));
    }
    tasks.spawn(start_check.clone().run(disk));
    tasks.spawn(claimant.run());
    tasks.spawn(authorities.clone().run());
    tasks.spawn(detector.run(views.subscribe(), book, network));
    let parts = Parts {
        me,
        uid,
        copy,
        group,
        versions,
        changes: Changes::new(me, views.clone(), fetcher.clone(), proposer.clone()),
        admission: Admission::new(views.clone(), proposer.clone(), fetcher.clone(), authorities.clone()),
        authorities,
        views,
        proposer,
        fetcher,
        encoded: Default::default(),
        lineages,
        recoverer,
        participation,
        start_check,
        exchange,
        liveness,
        rivals: Default::default(),
        supervisor,
        tasks,
        ended,
    };
    Ok(Cluster { inner: Arc::new(parts) })
}

/// Found a single-node cluster, or finish founding it.
async fn found(
    me: NodeId,
    command: Command,
    group: &RaftGroup,
    proposer: &Proposer,
) -> Result<(), ClusterError> {
    let failed = |error: &dyn std::fmt::Display| ClusterError::Founding(error.to_string());
    let deadline = Instant::now() + FOUNDING;
    let raft = group.raft();
    if !raft.is_initialized().await.map_err(|error| failed(&error))? {
        raft.initialize(BTreeSet::from([me.0])).await.map_err(|error| failed(&error))?;
    }
    match proposer.propose(command, deadline).await {
        // A refusal means that the command was applied before a crash and has been replayed since.
        Ok((_, Outcome::Done)) | Err(ProposeError::Refused(Refusal::Founding)) => {}
        Ok((_, other)) => return Err(failed(&format!("{other:?}"))),
        Err(error) => return Err(failed(&error)),
    }
    // The provisional view has index 0, and every committed view a higher one.
    proposer.views().wait_applied(1, deadline).await.map(drop).map_err(|error| failed(&error))
}

/// Compute the state that a founding leads to. It is the first view, until the committed one replaces it.
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

/// Keep the newest view on disk. Views that arrive faster than they are written are skipped.
async fn keep_copy(mut views: watch::Receiver<Arc<View>>, copy: RingCopy) {
    // The first view is written too: it may have changed since it was read.
    loop {
        let view = views.borrow_and_update().clone();
        copy.write(&view.state);
        if views.changed().await.is_err() {
            return;
        }
    }
}
