//! What a node does with its share of the ring: modules, vnodes, handoff, requests.

use std::path::Path;
use std::sync::Arc;

use annulus_core::ids::{BootId, ModuleUid, NodeUid};
use annulus_core::keyspace::PartitionId;
use annulus_core::ring::Partition;
use annulus_core::state::{Command, Module, Refusal};
use annulus_core::wording::ranges;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Router, Stand};
use annulus_cluster::{Cluster, ProposeError, View};
use annulus_data_dir::{DataDir, DataDirError, EmptyModules, Store};
use annulus_handoff::{Handoff, SealError, Seals};
use annulus_modules::{Artefacts, Modules};
use annulus_request::Coordinator;
use annulus_transport::{BulkStream, PeerIdentity, Request, Service, Transport, kind};
use annulus_vnode::{Filled, Loader, Master, MasterConfig, ModuleSource, Release};
use annulus_wasm::Engine;

/// Why they do not start. The node must not serve then.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// This machine cannot run WebAssembly.
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    /// The notes about empty modules cannot be read.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The seals cannot be read.
    #[error(transparent)]
    Seals(#[from] SealError),
}

/// The services of one life of a node. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    /// Deployed modules.
    pub modules: Modules,
    /// Running vnodes.
    pub master: Master,
    /// Items on their way to other nodes.
    pub handoff: Handoff,
    /// Requests of clients.
    pub coordinator: Coordinator,
}

/// What services are put together from.
pub(super) struct Parts<'a> {
    pub(super) cluster: Cluster,
    pub(super) transport: Transport,
    pub(super) database: &'a Store,
    pub(super) data: &'a DataDir,
    pub(super) compiler: Option<&'a Path>,
    pub(super) boot: BootId,
    pub(super) stand: &'a Stand,
    pub(super) router: &'a Router,
}

impl Services {
    /// Loads the modules, takes up the partitions, and serves from then on.
    pub(super) async fn start(parts: Parts<'_>) -> Result<Self, ServicesError> {
        let Parts { cluster, transport, database, data, compiler, boot, stand, router } = parts;
        let network = &stand.network;
        let loader = match &stand.loader {
            Some(loader) => loader.clone(),
            None => engine(data, compiler)?,
        };
        let artefacts = Artefacts::new(data.disk().clone(), data.path().join("components"));
        let modules = Modules::new(cluster.clone(), transport.clone(), loader, artefacts);
        let seals = Seals::open(database)?;

        let view = cluster.view();
        let empty = Arc::new(data.empty_modules()?);
        let source = Source { modules: modules.clone(), empty: empty.clone() };
        let (guests, workers) = (network.clone(), network.metrics().num_workers());
        let config = MasterConfig { me: view.me, guests, workers, modules: Arc::new(source) };
        let master = Master::new(config, &view.state.ring, &seals.all());
        let lost = note_restart(&master, &modules, &empty, &view);
        let mut changes = cluster.watch();
        apply(&master, &cluster, &changes.borrow_and_update());
        // What this node has on disk is loaded before it says that it is there, so that a
        // restart is over when the node serves again.
        modules.start(&master).await;
        let told = cluster.clone();
        annulus_ground::spawn_on(network, async move {
            if !lost.is_empty() {
                let why = "the node started again without what its modules had in memory";
                tell_lost(told.clone(), lost, why).await;
            }
            // Not before: a node that ends untold has to tell it at its next start.
            note_empty(told, empty).await;
        });
        let (follower, log) = (master.clone(), cluster.clone());
        annulus_ground::spawn_on(network, async move {
            while changes.changed().await.is_ok() {
                let view = changes.borrow_and_update().clone();
                annulus_ground::point("node: the vnodes follow the ring").await;
                apply(&follower, &log, &view);
            }
        });

        let handoff =
            Handoff::new(cluster.clone(), transport.clone(), modules.clone(), master.clone(), seals, boot);
        handoff.start();
        let coordinator = Coordinator::new(cluster, transport, modules.clone(), master.clone());
        let services = Self { modules, master, handoff, coordinator };
        router.serve_node(Arc::new(services.clone()));
        Ok(services)
    }

    /// Ends every vnode in order.
    pub(super) async fn stop(&self) {
        if tokio::time::timeout(STOP_LIMIT, self.master.stop()).await.is_err() {
            tracing::warn!("some vnodes did not end within {STOP_LIMIT:?} and are left behind");
        }
    }
}

/// The engine of a process that serves users. Shows what the system lets this process have: what a node runs out
/// of first should be known before.
fn engine(data: &DataDir, compiler: Option<&Path>) -> Result<Arc<dyn Loader>, ServicesError> {
    let engine = Engine::of_a_node(data.path().join("compiled"), compiler.map(Path::to_owned))
        .map_err(|error| ServicesError::Engine(format!("{error:#}")))?;
    let (room, files) = (engine.room(), rustix::process::getrlimit(rustix::process::Resource::Nofile));
    tracing::info!(instances = room.instances, by = ?room.by, open_files = ?files.current, "limits of this process");
    Ok(Arc::new(engine))
}

/// Longest that vnodes may take to end: one in an endless loop traps at its call limit.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(6);

fn apply(master: &Master, cluster: &Cluster, view: &View) {
    let modules: Vec<ModuleUid> = view.state.modules.keys().copied().collect();
    let aside = master.apply(&view.state.ring, &modules, view.index(), view.state.lineage);
    if !aside.is_empty() {
        let why = "a recovery gave partitions away whose items are kept aside here";
        annulus_ground::spawn(tell_lost(cluster.clone(), aside, why));
    }
}

/// Has the cluster note that items of these partitions may be gone: every member tells so then, and goes on
/// when this node has ended. Given up where this node is no member, or nobody has a module any more.
async fn tell_lost(cluster: Cluster, partitions: Vec<PartitionId>, why: &str) {
    tracing::warn!(?partitions, "{why}");
    let mut ended = cluster.ended();
    loop {
        let view = cluster.view();
        let command = Command::Lost { node: view.me, partitions: partitions.clone() };
        match cluster.propose(command, Instant::now() + LOST_LIMIT).await {
            Ok(_) | Err(ProposeError::Refused(Refusal::NotMember(_))) => return,
            // Also while the cluster does not know this command yet.
            Err(error) => tracing::debug!(%error, "the possible loss is not noted yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOST_PAUSE) => {}
            _ = ended.wait_for(Option::is_some) => return,
        }
        // All of them were undeployed while this node was away.
        if cluster.view().state.modules.is_empty() {
            return;
        }
    }
}

/// Longest that one try to note a loss may take, and the pause after it.
const LOST_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);
const LOST_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// What vnodes run, and who learns that they have items.
struct Source {
    modules: Modules,
    empty: Arc<EmptyModules>,
}

impl ModuleSource for Source {
    fn release(&self, module: ModuleUid) -> Option<Arc<Release>> {
        self.modules.release(module)
    }

    fn filled(&self, module: ModuleUid) -> Filled<'_> {
        Box::pin(async move {
            if !self.empty.is_filled(module) {
                let empty = self.empty.clone();
                // An error: the node ends, and the write is not answered either.
                let _ = annulus_ground::blocking(move || empty.fill(module)).await;
            }
        })
    }
}

/// Notes for each module, as it is deployed, that it has no items here yet.
async fn note_empty(cluster: Cluster, empty: Arc<EmptyModules>) {
    let mut changes = cluster.watch();
    let mut noted: Option<Vec<ModuleUid>> = None;
    loop {
        let modules: Vec<ModuleUid> = changes.borrow_and_update().state.modules.keys().copied().collect();
        if noted.as_ref() != Some(&modules) {
            let (empty, modules) = (empty.clone(), modules.clone());
            if annulus_ground::blocking(move || empty.note(modules)).await.is_err() {
                return;
            }
        }
        noted = Some(modules);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Items that guests kept in memory did not outlive the process: an operator sees so (R5). Answers the
/// partitions that this may be true of.
fn note_restart(master: &Master, modules: &Modules, empty: &EmptyModules, view: &View) -> Vec<PartitionId> {
    let owned = |partition: &Partition| partition.replicas.first() == Some(&view.me);
    let held: Vec<PartitionId> =
        view.state.ring.iter().filter(|(_, partition)| owned(partition)).map(|(id, _)| id).collect();
    let keeps_items = |module: &&Module| {
        let exported = modules.description(module).exported;
        (exported.handoff || exported.writes_storage) && !empty.is_empty(module.uid)
    };
    let kept: Vec<&Module> = view.state.modules.values().filter(keeps_items).collect();
    if held.is_empty() || kept.is_empty() {
        return Vec::new();
    }
    let ids: Vec<u16> = held.iter().map(|id| id.0).collect();
    for module in kept {
        let reason =
            format!("the node started again: items in memory of partitions {} are gone", ranges(&ids));
        master.note("possible-loss", &module.name, None, &reason);
    }
    held
}

impl Service for Services {
    fn request(&self, request: Request) {
        match request.kind {
            kind::CALL => self.coordinator.serve(request),
            kind::MODULE_PREPARE | kind::MODULE_RUNNING => self.modules.serve(request),
            kind::MODULES_UNABLE => self.modules.heard_unable(request),
            kind::TRANSFERS => self.handoff.serve_rows(request),
            kind::HOLDINGS => self.handoff.serve_holdings(request),
            kind => tracing::warn!(kind, from = ?request.from, "a request of no known kind"),
        }
    }

    fn bulk(&self, from: PeerIdentity, kind: u8, header: Bytes, stream: BulkStream) {
        match kind {
            kind::BULK_HANDOFF => self.handoff.serve(stream),
            kind::BULK_ARTEFACT => self.modules.serve_artefact(&header, stream),
            kind => tracing::warn!(kind, ?from, "a stream of no known kind"),
        }
    }

    fn connected(&self, peer: NodeUid) {
        self.modules.connected(peer);
    }
}
