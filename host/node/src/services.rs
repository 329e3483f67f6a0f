//! The services of a node for its share of the ring: modules, vnodes, handoff, requests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use annulus_core::ids::{BootId, ModuleUid, NodeId};
use annulus_core::keyspace::PartitionId;
use annulus_core::ring::Partition;
use annulus_core::role::REPLICAS;
use annulus_core::state::{Command, Module, Refusal, StorageKind};
use annulus_core::wording::ranges;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::tasks::Tasks;
use super::{Router, Stand, while_locked};
use annulus_cluster::{Cluster, ProposeError, View};
use annulus_data_dir::{DataDir, DataDirError, EmptyModules, ReplicatedModules, Store};
use annulus_handoff::{Handoff, SealError, Seals};
use annulus_modules::{Artefacts, Modules};
use annulus_replica::Replicas;
use annulus_request::Coordinator;
use annulus_storage::{Opened, SetAside, Stores, StoresConfig};
use annulus_transport::Transport;
use annulus_vnode::{Filled, Loader, Master, MasterConfig, ModuleSource, Release};
use annulus_wasm::Engine;

/// Reasons for which the services do not start. The node must not serve then.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// This machine cannot run WebAssembly.
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    /// The record of empty modules cannot be read.
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
    /// Transfers of items to other nodes.
    pub handoff: Handoff,
    /// Modules with several replicas.
    pub replicas: Replicas,
    /// Routing of client requests.
    pub coordinator: Coordinator,
}

/// The parts that the services use.
pub(super) struct Parts<'a> {
    pub(super) cluster: Cluster,
    pub(super) transport: Transport,
    pub(super) database: &'a Store,
    pub(super) data: &'a Arc<DataDir>,
    pub(super) compiler: Option<&'a Path>,
    pub(super) guest_memory: Option<usize>,
    pub(super) disk_reserve: u64,
    pub(super) boot: BootId,
    pub(super) stand: &'a Stand,
    pub(super) router: &'a Router,
    pub(super) tasks: &'a Tasks,
}

impl Services {
    /// Load the modules, start the vnodes, and serve from then on.
    pub(super) async fn start(parts: Parts<'_>) -> Result<Self, ServicesError> {
        let Parts { cluster, transport, database, data, compiler, guest_memory, .. } = parts;
        let Parts { disk_reserve, boot, stand, router, tasks, .. } = parts;
        let network = &stand.network;
        let loader = match &stand.loader {
            Some(loader) => loader.clone(),
            None => engine(data, compiler, guest_memory)?,
        };
        let artefacts = Artefacts::new(data.disk().clone(), data.path().join("components"));
        let modules = Modules::new(cluster.clone(), transport.clone(), loader, artefacts);
        let seals = Seals::open(database)?;

        let view = cluster.view();
        let (stores, opened) = open_stores(data, view.me, disk_reserve).await?;
        let empty = Arc::new(data.empty_modules()?);
        let replicated = Arc::new(data.replicated_modules()?);
        let source =
            Source { modules: modules.clone(), empty: empty.clone(), replicated: replicated.clone() };
        let (guests, workers) = (network.clone(), network.metrics().num_workers());
        let stores = stores.clone();
        let config = MasterConfig { me: view.me, guests, workers, modules: Arc::new(source), stores };
        let master = Master::new(config, &view.state.ring, &seals.all());
        let lost = note_restart(&master, &modules, &empty, &view, opened.set_aside.as_ref());
        let mut changes = cluster.watch();
        let reports = Tasks::default();
        apply(&master, &cluster, &changes.borrow_and_update(), (&reports, network));
        // Load what is on disk before announcing this node, so that a restart is complete when it serves.
        modules.start(&master).await;
        let told = cluster.clone();
        tasks.spawn_on(network, async move {
            if !lost.is_empty() {
                let why = "the node started again without what its modules had in memory";
                tell_lost(told.clone(), lost, why).await;
            }
            // This follows the report, because a node that ends before the report must report the loss at its
            // next start.
            note_empty(told, empty, replicated).await;
        });
        let (follower, log) = (master.clone(), cluster.clone());
        let on = network.clone();
        tasks.spawn_on(network, async move {
            while changes.changed().await.is_ok() {
                let view = changes.borrow_and_update().clone();
                annulus_ground::point("node: the vnodes follow the ring").await;
                apply(&follower, &log, &view, (&reports, &on));
            }
        });

        let handoff =
            Handoff::new(cluster.clone(), transport.clone(), modules.clone(), master.clone(), seals, boot);
        handoff.start();
        let replicas = Replicas::new(cluster.clone(), transport.clone(), modules.clone(), master.clone());
        replicas.start();
        let coordinator =
            Coordinator::new(cluster, transport, modules.clone(), master.clone(), replicas.clone());
        let services = Self { modules, master, handoff, replicas, coordinator };
        router.serve_nodes(services.clone());
        Ok(services)
    }

    /// Stop every vnode in order.
    pub(super) async fn stop(&self) {
        self.handoff.stop().await;
        self.replicas.stop().await;
        if tokio::time::timeout(STOP_LIMIT, self.master.stop()).await.is_err() {
            tracing::warn!("some vnodes did not end within {STOP_LIMIT:?} and are abandoned");
        }
        self.modules.stop().await;
    }
}

/// Open the durable stores of a node.
async fn open_stores(
    data: &Arc<DataDir>,
    me: NodeId,
    reserve_bytes: u64,
) -> Result<(Stores, Opened), DataDirError> {
    let (directory, prepared, hinted) = (data.clone(), data.clone(), data.clone());
    let config = StoresConfig {
        disk: data.disk().clone(),
        dir: data.path().to_owned(),
        uid: me.0,
        cache_bytes: ITEM_CACHE_BYTES,
        block_cache_bytes: BLOCK_CACHE_BYTES,
        reserve_bytes,
        before_creation: Arc::new(move || directory.note_items().map_err(|error| error.to_string())),
        before_replicas: Arc::new(move || prepared.note_replicas().map_err(|error| error.to_string())),
        before_hints: Arc::new(move || hinted.note_hints().map_err(|error| error.to_string())),
    };
    while_locked(|| Stores::open(config.clone())).await
}

/// Sizes of the caches of durable modules: of items, and of the engine's blocks, in bytes.
const ITEM_CACHE_BYTES: u64 = 64 << 20;
const BLOCK_CACHE_BYTES: u64 = 32 << 20;

/// Create the engine of a process that serves users, and log the limits that the system sets for this process,
/// so that the resource that runs out first is known in advance.
fn engine(
    data: &DataDir,
    compiler: Option<&Path>,
    guest_memory: Option<usize>,
) -> Result<Arc<dyn Loader>, ServicesError> {
    let compiled = data.path().join("compiled");
    let engine = Engine::of_a_node(compiled, compiler.map(Path::to_owned), guest_memory)
        .map_err(|error| ServicesError::Engine(format!("{error:#}")))?;
    let (room, files) = (engine.room(), rustix::process::getrlimit(rustix::process::Resource::Nofile));
    let guest_memory_mib = engine.memory_limit() >> 20;
    tracing::info!(
        instances = room.instances,
        by = ?room.by,
        open_files = ?files.current,
        guest_memory_mib,
        "limits of this process"
    );
    Ok(Arc::new(engine))
}

/// Limit for the vnodes to end. A vnode in an endless loop traps at its call limit.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(6);

/// Apply a view to the vnodes. Losses are reported by tasks of the given set, which abort with it.
fn apply(master: &Master, cluster: &Cluster, view: &View, (reports, network): (&Tasks, &Handle)) {
    let modules = view.state.modules.values();
    let modules: BTreeMap<ModuleUid, usize> =
        modules.map(|module| (module.uid, usize::from(module.n))).collect();
    let aside = master.apply(&view.state.ring, &modules, view.index(), view.state.lineage);
    if !aside.is_empty() {
        let why = "a recovery moved partitions to other nodes; their items are kept aside here";
        reports.spawn_on(network, tell_lost(cluster.clone(), aside, why));
    }
}

/// Make the cluster record that items of these partitions may be lost, so that every member reports it even
/// after this node has ended. No record is made if this node is not a member or no module is left.
async fn tell_lost(cluster: Cluster, partitions: Vec<PartitionId>, why: &str) {
    tracing::warn!(?partitions, "{why}");
    let mut ended = cluster.ended();
    loop {
        let view = cluster.view();
        let command = Command::Lost { node: view.me, partitions: partitions.clone() };
        match cluster.propose(command, Instant::now() + LOST_LIMIT).await {
            Ok(_) | Err(ProposeError::Refused(Refusal::NotMember(_))) => return,
            // This also occurs while the cluster's level lacks the command.
            Err(error) => tracing::debug!(%error, "the possible loss is not recorded yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOST_PAUSE) => {}
            _ = ended.wait_for(Option::is_some) => return,
        }
        // If no module is left, all of them were undeployed while this node was down.
        if cluster.view().state.modules.is_empty() {
            return;
        }
    }
}

/// Limit of one attempt to record a loss, and the pause after it.
const LOST_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);
const LOST_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// Gives vnodes their modules, and records which modules have items.
struct Source {
    modules: Modules,
    empty: Arc<EmptyModules>,
    replicated: Arc<ReplicatedModules>,
}

impl ModuleSource for Source {
    fn release(&self, module: ModuleUid) -> Option<Arc<Release>> {
        self.modules.release(module)
    }

    fn filled(&self, module: ModuleUid) -> Filled<'_> {
        Box::pin(async move {
            if !self.empty.is_filled(module) {
                let empty = self.empty.clone();
                // An error means that the node is ending, and then the write is not answered either.
                let _ = annulus_ground::blocking(move || empty.fill(module)).await;
            }
            let is_replicated = self.modules.release(module).is_some_and(|release| release.is_replicated());
            if is_replicated && !self.replicated.is_noted(module) {
                let replicated = self.replicated.clone();
                let noted = annulus_ground::blocking(move || replicated.note(module)).await;
                let noted = noted.map_err(|error| error.to_string())?;
                return noted.map_err(|error| format!("this node cannot take items of the module: {error}"));
            }
            Ok(())
        })
    }

    fn had_items(&self, module: ModuleUid) -> bool {
        self.replicated.had_items(module)
    }
}

/// Record for each deployed module that it has no items here yet, and forget those that are gone.
async fn note_empty(cluster: Cluster, empty: Arc<EmptyModules>, replicated: Arc<ReplicatedModules>) {
    let mut changes = cluster.watch();
    let mut noted: Option<Vec<ModuleUid>> = None;
    loop {
        let view = changes.borrow_and_update().clone();
        let modules: Vec<ModuleUid> = view.state.modules.keys().copied().collect();
        if noted.as_ref() != Some(&modules) {
            let (empty, replicated, modules) = (empty.clone(), replicated.clone(), modules.clone());
            let note = move || {
                replicated.keep(&modules, view.index());
                empty.note(modules);
            };
            if annulus_ground::blocking(note).await.is_err() {
                return;
            }
        }
        noted = Some(modules);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Report to the operator the items that were lost with the previous process, or with its disk (R5). Return the
/// partitions that may be affected.
fn note_restart(
    master: &Master,
    modules: &Modules,
    empty: &EmptyModules,
    view: &View,
    set_aside: Option<&SetAside>,
) -> Vec<PartitionId> {
    let holds = |partition: &Partition| partition.role_of(view.me, REPLICAS).holds();
    let held: Vec<PartitionId> =
        view.state.ring.iter().filter(|(_, partition)| holds(partition)).map(|(id, _)| id).collect();
    let keeps_items = |module: &&Module| {
        // What was lost of several replicas is known once the store is built from the others.
        if module.n > 1 {
            return false;
        }
        if module.storage == StorageKind::Durable {
            return set_aside.is_some();
        }
        let exported = modules.description(module).exported;
        (exported.handoff || exported.writes_storage) && !empty.is_empty(module.uid)
    };
    let kept: Vec<&Module> = view.state.modules.values().filter(keeps_items).collect();
    if held.is_empty() || kept.is_empty() {
        return Vec::new();
    }
    let ids: Vec<u16> = held.iter().map(|id| id.0).collect();
    for module in kept {
        let reason = match set_aside.filter(|_| module.storage == StorageKind::Durable) {
            Some(aside) => format!(
                "the database of items was set aside in {}: {}; items of partitions {} are gone here",
                aside.path.display(),
                aside.reason,
                ranges(&ids)
            ),
            None => {
                format!("the node started again: items in memory of partitions {} are gone", ranges(&ids))
            }
        };
        master.note("possible-loss", &module.name, None, &reason);
    }
    held
}
