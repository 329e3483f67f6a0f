//! The durable stores of a node: which there are, what each is for, and the steps from one purpose to another.
//!
//! The registry changes at once, in the order of the calls. The records on disk follow through the committer in the same
//! order, so that no item can become durable in a store before the step that led to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_data_dir::{DataDirError, Disk};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::committer::Sweep;
use super::database::{self, Database, Found, Shared};
use super::durable::Durable;
use super::error::StorageError;
use super::header::{Header, LogPlace, Record, StageRecord, StoreRole, header_key, stage_key};
use super::items::Items;
use super::keys::StoreId;

/// The settings of a node's stores.
#[derive(Clone)]
pub struct StoresConfig {
    /// The disk.
    pub disk: Disk,
    /// The data directory.
    pub dir: PathBuf,
    /// A number that differs from node to node, so that not all of them flush at the same moment.
    pub uid: u64,
    /// Size of the cache of items in bytes.
    pub cache_bytes: u64,
    /// Size of the engine's cache of blocks in bytes.
    pub block_cache_bytes: u64,
    /// Free space of the disk below which writes are refused, in bytes; 0 refuses none.
    pub reserve_bytes: u64,
    /// Called before the database is created, in a thread that may block.
    pub before_creation: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Called before the first store of a module with several replicas is used, in such a thread.
    pub before_replicas: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Called before the first store of items for other nodes is used, in such a thread.
    pub before_hints: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// A database of items that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The directory that has it now.
    pub path: PathBuf,
    /// The reason, for people.
    pub reason: String,
}

/// The outcome of opening the stores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Present if the database was damaged.
    pub set_aside: Option<SetAside>,
}

/// A complete stage that was found at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundStage {
    /// The partition.
    pub partition: PartitionId,
    /// The transfer.
    pub transfer: TransferId,
    /// False if modules whose items are in memory took part in the transfer: those items are lost.
    pub whole: bool,
}

/// The state of the stores, for status reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Number of stores that serve, that receive a transfer, that are kept aside, and that are being removed.
    pub members: usize,
    /// Number of stores that are one of several replicas, and of those among them that are not complete.
    pub replicas: usize,
    /// See `replicas`.
    pub building: usize,
    /// Number of stores that keep items for replicas at other nodes.
    pub hints: usize,
    /// See `members`.
    pub stages: usize,
    /// See `members`.
    pub aside: usize,
    /// See `members`.
    pub dropped: usize,
    /// Free space of the disk, and the reserve below which writes are refused, in bytes.
    pub free_bytes: u64,
    /// See `free_bytes`.
    pub reserve_bytes: u64,
    /// The reason why nothing is served, if damage was found.
    pub damage: Option<String>,
    /// Number and bytes of the changes that wait for the disk.
    pub waiting: (usize, usize),
    /// Number of commits since the start.
    pub commits: u64,
}

/// All durable stores of a node. Clones share them.
#[derive(Clone)]
pub struct Stores(Option<Arc<Inner>>);

struct Inner {
    shared: Arc<Shared>,
    registry: Mutex<Registry>,
    found: Vec<FoundStage>,
    found_at: Option<LogPlace>,
    /// Notified when no item of a dropped store is left.
    swept: Notify,
}

#[derive(Default)]
struct Registry {
    stores: BTreeMap<StoreId, Arc<Durable>>,
    /// The highest number that a store of a partition had in this run.
    highest: BTreeMap<PartitionId, u16>,
    /// The complete stages.
    complete: BTreeMap<PartitionId, TransferId>,
    /// Modules that the present lineage has undeployed in this run.
    ended: BTreeSet<ModuleUid>,
}

impl Stores {
    /// No durable stores, for tests and benchmarks: items of every module are in memory.
    pub fn none() -> Self {
        Self(None)
    }

    /// Open the stores. A database that is damaged, or that has lost acknowledged changes, is set aside whole.
    ///
    /// # Errors
    /// The system refuses to open the database, or another process has it open. Nothing was changed.
    pub async fn open(config: StoresConfig) -> Result<(Self, Opened), DataDirError> {
        let shared = Arc::new(Shared::new(config.clone()));
        let dir = config.dir.clone();
        let found = annulus_ground::blocking(move || database::open(&config)).await;
        let found = found.map_err(|error| {
            let source = std::io::Error::other(error.to_string());
            DataDirError::Io { path: dir, source }
        })??;
        let mut opened = Opened::default();
        let mut registry = Registry::default();
        let mut stages = Vec::new();
        match found {
            Found::Nothing => {}
            Found::SetAside(aside) => opened.set_aside = Some(aside),
            Found::Database(database, records) => {
                shared.set_database(database.clone());
                stages = registry.load(&shared, &database, records);
            }
        }
        let found_at = *shared.followed.lock();
        let registry = Mutex::new(registry);
        let inner = Arc::new(Inner { shared, registry, found: stages, found_at, swept: Notify::new() });
        let dropped: Vec<_> = inner.with_role(|role| role == StoreRole::Dropped);
        dropped.into_iter().for_each(|store| inner.sweep(store));
        Ok((Self(Some(inner)), opened))
    }

    /// Return the modules with items in a partition that may serve.
    pub fn members_of(&self, partition: PartitionId) -> Vec<ModuleUid> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let of = |store: &Arc<Durable>| store.id.partition == partition;
        let members = inner.with_role(|role| role == StoreRole::Member).into_iter();
        members.filter(of).map(|store| store.module).collect()
    }

    /// Return the modules with any store that is neither aside nor dropped.
    pub fn modules(&self) -> Vec<ModuleUid> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let live = |role| !matches!(role, StoreRole::Aside | StoreRole::Dropped);
        let mut modules: Vec<_> = inner.with_role(live).iter().map(|store| store.module).collect();
        modules.sort_unstable();
        modules.dedup();
        modules
    }

    /// Return the items of a vnode that serves. Nothing is on disk before the first change.
    pub fn member(&self, module: ModuleUid, partition: PartitionId) -> Items {
        let Some(inner) = &self.0 else { return Items::memory() };
        let mut registry = inner.registry.lock();
        let is = |store: &&Arc<Durable>| store.module == module && store.role() == StoreRole::Member;
        let known = registry.of_partition(partition).find(is).cloned();
        Items::durable(
            known.unwrap_or_else(|| registry.create(&inner.shared, module, partition, StoreRole::Member)),
        )
    }

    /// Return the items of one of several replicas. `complete` and `since` are those of a store that does not exist yet.
    pub fn replica(
        &self,
        module: ModuleUid,
        partition: PartitionId,
        complete: bool,
        since: TransferId,
    ) -> Items {
        let Some(inner) = &self.0 else { return Items::memory() };
        let mut registry = inner.registry.lock();
        let known = registry.replica(module, partition).cloned();
        let role = StoreRole::Replica { complete, since };
        Items::durable(known.unwrap_or_else(|| registry.create(&inner.shared, module, partition, role)))
    }

    /// Return whether a replica's store is complete, and the transfer for which it was made; `None` if there is none.
    pub fn is_complete(&self, module: ModuleUid, partition: PartitionId) -> Option<(bool, TransferId)> {
        let registry = self.0.as_ref()?.registry.lock();
        match registry.replica(module, partition)?.role() {
            StoreRole::Replica { complete, since } => Some((complete, since)),
            _ => None,
        }
    }

    /// Return true if the record of a replica's store, on disk or on the way there, says that it is complete.
    pub fn is_recorded(&self, module: ModuleUid, partition: PartitionId) -> bool {
        let Some(inner) = &self.0 else { return false };
        let registry = inner.registry.lock();
        let store = registry.replica(module, partition);
        store.is_some_and(|store| {
            store.has_header() && matches!(store.role(), StoreRole::Replica { complete: true, .. })
        })
    }

    /// Return the replicas, by module and partition.
    pub fn replicas(&self) -> Vec<(ModuleUid, PartitionId)> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let replicas = inner.with_role(|role| matches!(role, StoreRole::Replica { .. }));
        replicas.iter().map(|store| (store.module, store.id.partition)).collect()
    }

    /// Make the store of a replica complete. All changes before are durable when this returns.
    ///
    /// # Errors
    /// The store may still be incomplete after the next start. One that was dropped meanwhile stays dropped.
    pub async fn complete_replica(&self, items: &Items) -> Result<(), StorageError> {
        let Some((inner, store)) = self.0.as_ref().zip(items.on_disk()) else { return Ok(()) };
        // Its record needs the database, and its items the keyspace.
        store.open().await?;
        let database = inner.shared.opened().ok_or(StorageError::Closed)?;
        {
            let registry = inner.registry.lock();
            let StoreRole::Replica { since, .. } = store.role() else { return Err(StorageError::Closed) };
            store.set_role(StoreRole::Replica { complete: true, since });
            inner.shared.write(database, &[store.record()], &[]);
            drop(registry);
        }
        database.settle().await
    }

    /// Drop the store of a replica: other nodes have the partition.
    pub fn drop_replica(&self, module: ModuleUid, partition: PartitionId) {
        self.change_replica(module, partition, StoreRole::Dropped);
    }

    /// Keep the store of a replica on disk, and have it serve nothing (R19).
    pub fn set_replica_aside(&self, module: ModuleUid, partition: PartitionId) {
        self.change_replica(module, partition, StoreRole::Aside);
    }

    fn change_replica(&self, module: ModuleUid, partition: PartitionId, to: StoreRole) {
        let Some(inner) = &self.0 else { return };
        let registry = inner.registry.lock();
        let changes =
            registry.replica(module, partition).map(|store| (store.clone(), to)).into_iter().collect();
        inner.carry_out(registry, changes, None);
    }

    /// Return the items that this node keeps for replicas at other nodes.
    pub fn hint(&self, module: ModuleUid, partition: PartitionId) -> Items {
        let Some(inner) = &self.0 else { return Items::memory() };
        let mut registry = inner.registry.lock();
        let known = registry.hint(module, partition).cloned();
        Items::durable(
            known.unwrap_or_else(|| registry.create(&inner.shared, module, partition, StoreRole::Hint)),
        )
    }

    /// Return the stores that keep items for other nodes, by module and partition.
    pub fn hints(&self) -> Vec<(ModuleUid, PartitionId)> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let hints = inner.with_role(|role| role == StoreRole::Hint);
        hints.iter().map(|store| (store.module, store.id.partition)).collect()
    }

    /// Drop the items that this node keeps for replicas at other nodes: enough of those have them.
    pub fn drop_hint(&self, module: ModuleUid, partition: PartitionId) {
        let Some(inner) = &self.0 else { return };
        let registry = inner.registry.lock();
        // One in memory has none.
        let Some(store) = registry.hint(module, partition).cloned() else { return };
        inner.carry_out(registry, vec![(store, StoreRole::Dropped)], None);
    }

    /// Return a new store for the items that a transfer brings.
    pub fn stage(&self, module: ModuleUid, partition: PartitionId, transfer: TransferId) -> Items {
        let Some(inner) = &self.0 else { return Items::memory() };
        let role = StoreRole::Stage(transfer);
        Items::durable(inner.registry.lock().create(&inner.shared, module, partition, role))
    }

    /// Make a stage durable, with the fact that it is complete. A crash from now on leaves the stage. `whole` is false if
    /// modules whose items are in memory take part.
    ///
    /// # Errors
    /// A crash may not leave the stage.
    pub async fn complete_stage(
        &self,
        partition: PartitionId,
        transfer: TransferId,
        whole: bool,
    ) -> Result<(), StorageError> {
        let Some(inner) = &self.0 else { return Ok(()) };
        // Without a database no module has had an item here.
        let Some(database) = inner.shared.opened() else { return Ok(()) };
        inner.shared.check()?;
        {
            let mut registry = inner.registry.lock();
            let staged = registry.of_partition(partition);
            let mut records: Vec<Record> = staged
                .filter(|store| store.role() == StoreRole::Stage(transfer))
                .map(|store| store.record())
                .collect();
            records.push(Record::Stage(partition, StageRecord { transfer, whole }));
            registry.complete.insert(partition, transfer);
            inner.shared.write(database, &records, &[]);
        }
        database.settle().await
    }

    /// Return the complete stages that the former process left.
    pub fn found_stages(&self) -> Vec<FoundStage> {
        self.0.as_ref().map(|inner| inner.found.clone()).unwrap_or_default()
    }

    /// Have the stores of a stage serve, for all modules at once. Stores that served before are dropped.
    pub fn promote(&self, partition: PartitionId, transfer: TransferId) {
        self.change(partition, |role| match role {
            StoreRole::Member => Some(StoreRole::Dropped),
            StoreRole::Stage(of) if of == transfer => Some(StoreRole::Member),
            _ => None,
        });
    }

    /// Drop the stage of a transfer.
    pub fn drop_stage(&self, partition: PartitionId, transfer: TransferId) {
        self.change(partition, |role| (role == StoreRole::Stage(transfer)).then_some(StoreRole::Dropped));
    }

    /// Drop the stores that serve: another node owns the partition permanently.
    pub fn drop_members(&self, partition: PartitionId) {
        self.change(partition, |role| (role == StoreRole::Member).then_some(StoreRole::Dropped));
    }

    /// Keep the stores that served on disk, and have them serve nothing (R19).
    pub fn set_members_aside(&self, partition: PartitionId) {
        self.change(partition, |role| (role == StoreRole::Member).then_some(StoreRole::Aside));
    }

    /// Keep a stage on disk, and have it serve nothing (R19).
    pub fn set_stage_aside(&self, partition: PartitionId, transfer: TransferId) {
        self.change(partition, |role| (role == StoreRole::Stage(transfer)).then_some(StoreRole::Aside));
    }

    /// Keep all stores of a module on disk, and have them serve nothing (R19).
    pub fn set_module_aside(&self, module: ModuleUid) {
        self.change_module(module, StoreRole::Aside);
    }

    /// Drop all stores of a module that was undeployed.
    pub fn drop_module(&self, module: ModuleUid) {
        if let Some(inner) = &self.0 {
            inner.registry.lock().ended.insert(module);
        }
        self.change_module(module, StoreRole::Dropped);
    }

    fn change_module(&self, module: ModuleUid, to: StoreRole) {
        let Some(inner) = &self.0 else { return };
        let registry = inner.registry.lock();
        let of = |store: &&Arc<Durable>| store.module == module && store.role() != StoreRole::Dropped;
        let changes: Vec<_> = registry.stores.values().filter(of).map(|store| (store.clone(), to)).collect();
        inner.carry_out(registry, changes, None);
    }

    /// Give the stores of a partition new roles.
    fn change(&self, partition: PartitionId, next: impl Fn(StoreRole) -> Option<StoreRole>) {
        let Some(inner) = &self.0 else { return };
        let mut registry = inner.registry.lock();
        let stores = registry.of_partition(partition);
        let changes = stores.filter_map(|store| Some((store.clone(), next(store.role())?))).collect();
        // The record of a complete stage ends with the stage.
        let ended =
            registry.complete.get(&partition).filter(|transfer| next(StoreRole::Stage(**transfer)).is_some());
        let ended = ended.is_some().then_some(partition);
        if ended.is_some() {
            registry.complete.remove(&partition);
        }
        inner.carry_out(registry, changes, ended);
    }

    /// Return the place in the log that the stores of the former process had followed, if there were any. A state from
    /// before it must not change them: their changes are on disk before the state that led to them.
    pub fn found_at(&self) -> Option<LogPlace> {
        self.0.as_ref().and_then(|inner| inner.found_at)
    }

    /// Note the place in the log that the stores follow from now on, before any change that comes of it. A module that
    /// another lineage has undeployed may be deployed in this one.
    pub fn follow(&self, place: LogPlace) {
        let Some(inner) = &self.0 else { return };
        let before = inner.shared.followed.lock().replace(place);
        if before.is_some_and(|before| before.lineage == place.lineage) {
            return;
        }
        inner.registry.lock().ended.clear();
        if let Some(database) = inner.shared.opened() {
            inner.shared.write(database, &[], &[]);
        }
    }

    /// Return the state of the stores.
    pub fn health(&self) -> Health {
        let Some(inner) = &self.0 else { return Health::default() };
        let mut health = Health::default();
        for store in inner.registry.lock().stores.values() {
            match store.role() {
                StoreRole::Member => health.members += 1,
                StoreRole::Replica { complete, .. } => {
                    health.replicas += 1;
                    health.building += usize::from(!complete);
                }
                StoreRole::Stage(_) => health.stages += 1,
                StoreRole::Hint => health.hints += 1,
                StoreRole::Aside => health.aside += 1,
                StoreRole::Dropped => health.dropped += 1,
            }
        }
        (health.free_bytes, health.reserve_bytes) =
            (inner.shared.reserve.free(), inner.shared.reserve.bytes());
        health.damage = inner.shared.damage().cloned();
        if let Some(database) = inner.shared.opened() {
            let (changes, bytes, commits) = database.committer.load();
            (health.waiting, health.commits) = ((changes, bytes), commits);
        }
        health
    }

    /// Wait until no item of a dropped store is left.
    #[cfg(test)]
    pub(super) async fn swept(&self) {
        let Some(inner) = &self.0 else { return };
        while self.health().dropped > 0 {
            // A notification since the look is kept for this wait.
            inner.swept.notified().await;
        }
    }

    /// Make everything durable and end the committer. From then on changes are refused with [`StorageError::Closed`].
    pub async fn close(&self) {
        let Some(database) = self.0.as_ref().and_then(|inner| inner.shared.opened()) else { return };
        database.committer.close();
        database.committer.ended().await;
    }
}

impl Registry {
    fn of_partition(&self, partition: PartitionId) -> impl Iterator<Item = &Arc<Durable>> {
        let id = |number| StoreId { partition, number };
        self.stores.range(id(0)..=id(u16::MAX)).map(|(_, store)| store)
    }

    fn replica(&self, module: ModuleUid, partition: PartitionId) -> Option<&Arc<Durable>> {
        let is = |store: &&Arc<Durable>| {
            store.module == module && matches!(store.role(), StoreRole::Replica { .. })
        };
        self.of_partition(partition).find(is)
    }

    fn hint(&self, module: ModuleUid, partition: PartitionId) -> Option<&Arc<Durable>> {
        self.of_partition(partition).find(|store| store.module == module && store.role() == StoreRole::Hint)
    }

    fn create(
        &mut self,
        shared: &Arc<Shared>,
        module: ModuleUid,
        partition: PartitionId,
        role: StoreRole,
    ) -> Arc<Durable> {
        let highest = self.highest.entry(partition).or_default();
        // A number is used once in a run, because caches know stores by it. After 65,535 stores of a partition the
        // numbers start again with those that are free.
        let mut number = highest.wrapping_add(1);
        if number == 0 {
            shared.cache.clear();
        }
        while self.stores.contains_key(&StoreId { partition, number }) {
            number = number.wrapping_add(1);
        }
        *highest = number;
        let id = StoreId { partition, number };
        if self.ended.contains(&module) {
            // A vnode that started just before the undeploy: its store refuses everything.
            return Arc::new(Durable::new(shared.clone(), id, module, StoreRole::Dropped, None));
        }
        let store = Arc::new(Durable::new(shared.clone(), id, module, role, None));
        self.stores.insert(id, store.clone());
        store
    }

    /// Load the records of a database. Stages that are incomplete are dropped. Return the complete ones.
    fn load(&mut self, shared: &Arc<Shared>, database: &Database, records: Vec<Record>) -> Vec<FoundStage> {
        let mut found = Vec::new();
        for record in &records {
            match record {
                Record::Followed(place) => *shared.followed.lock() = Some(*place),
                Record::Stage(partition, StageRecord { transfer, whole }) => {
                    self.complete.insert(*partition, *transfer);
                    found.push(FoundStage { partition: *partition, transfer: *transfer, whole: *whole });
                }
                Record::Header(..) => {}
            }
        }
        let mut dropped = Vec::new();
        for record in records {
            let Record::Header(id, header) = record else { continue };
            let complete = self.complete.get(&id.partition);
            let role = match header.role {
                StoreRole::Stage(transfer) if complete != Some(&transfer) => StoreRole::Dropped,
                role => role,
            };
            if role != header.role {
                dropped.push(Record::Header(id, Header { role, ..header }));
            }
            let store = Durable::new(shared.clone(), id, header.module, role, Some(header));
            self.stores.insert(id, Arc::new(store));
            let highest = self.highest.entry(id.partition).or_default();
            *highest = (*highest).max(id.number);
        }
        shared.write(database, &dropped, &[]);
        found
    }
}

impl Inner {
    fn with_role(&self, is: impl Fn(StoreRole) -> bool) -> Vec<Arc<Durable>> {
        let registry = self.registry.lock();
        registry.stores.values().filter(|store| is(store.role())).cloned().collect()
    }

    /// Give stores new roles, in the registry and, as one change, on disk. `ended` is the partition whose complete stage
    /// has ended.
    fn carry_out(
        self: &Arc<Self>,
        mut registry: parking_lot::MutexGuard<'_, Registry>,
        changes: Vec<(Arc<Durable>, StoreRole)>,
        ended: Option<PartitionId>,
    ) {
        let mut records = Vec::new();
        let mut dropped = Vec::new();
        for (store, role) in changes {
            let has_items = store.set_role(role);
            if has_items {
                records.push(store.record());
            }
            match (role, has_items) {
                (StoreRole::Dropped, true) => dropped.push(store),
                (StoreRole::Dropped, false) => drop(registry.stores.remove(&store.id)),
                _ => {}
            }
        }
        if let Some(database) = self.shared.opened() {
            let removed: Vec<_> = ended.into_iter().map(stage_key).collect();
            self.shared.write(database, &records, &removed);
        }
        drop(registry);
        dropped.into_iter().for_each(|store| self.sweep(store));
    }

    /// Remove the items of a dropped store, then its header.
    fn sweep(self: &Arc<Self>, store: Arc<Durable>) {
        let Some(database) = self.shared.opened() else { return };
        let space = match store.space() {
            Some(space) => space,
            // The keyspace exists, so this is a lookup.
            None => match database.item_space(store.module) {
                Ok(Some(space)) => space,
                Ok(None) => return,
                Err(error) => {
                    return tracing::warn!(%error, "the items of a dropped store remain until the next start");
                }
            },
        };
        let (inner, id) = (Arc::downgrade(self), store.id);
        let done = Box::new(move || swept(&inner, id));
        database.committer.sweep(Sweep { store: id, space, done });
    }
}

/// Forget a store without items. Called by the committer.
fn swept(inner: &Weak<Inner>, id: StoreId) {
    let Some(inner) = inner.upgrade() else { return };
    let Some(database) = inner.shared.opened() else { return };
    let mut registry = inner.registry.lock();
    let Some(store) = registry.stores.remove(&id) else { return };
    inner.swept.notify_one();
    inner.shared.write(database, &[], &[header_key(id)]);
    let module = store.module;
    drop(store);
    let deployed = registry.stores.values().any(|store| store.module == module);
    if !deployed && registry.ended.contains(&module) {
        database.end_space(module);
    }
}
