//! The database of items of a node: opened with its stores, created with the first of them, set aside if it is damaged.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use annulus_core::ids::ModuleUid;
use annulus_data_dir::{
    DataDirError, Disk, Engine, EngineOptions, Op, Open, ReadLimit, SpaceId, Trouble, is_damage,
};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::cache::Cache;
use super::committer::{Change, Committer, ItemSpace, NUMBER_KEY, SpaceNumber, Spaces};
use super::error::StorageError;
use super::header::{self, LogPlace, Record};
use super::reserve::Reserve;
use super::stores::{SetAside, StoresConfig};
use super::witness::Witness;

/// Name of the database in the data directory.
const DATABASE: &str = "items";
const MARK: &str = "items.mark";
/// The file that has the database set aside at the next start. It contains the reason.
const BAD: &str = "items.bad";
/// The file that has the next start read the whole database before it serves. It contains the error of the commit that
/// failed: the disk was full, or a compaction met a damaged block. The engine then refuses all writes, in the latter case
/// again after every start.
const SUSPECT: &str = "items.suspect";
/// Bytes that one step of that reading reads.
const CHECK_BYTES: usize = 4 << 20;
/// The file that exists while the database is created. What a crash leaves of it has never had an item.
const CREATING: &str = "items.creating";
const ASIDE: &str = "items-set-aside-";
/// Prefix of the name of a module's keyspace; the module's uid follows.
const ITEMS: &str = "items-";

/// Have the data directory take stores of a new kind.
async fn prepare(
    before: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    kind: &str,
) -> Result<(), StorageError> {
    let prepared = annulus_ground::blocking(move || before()).await.map_err(|_| StorageError::Closed)?;
    prepared
        .map_err(|error| StorageError::Unavailable(format!("the data directory cannot take {kind}: {error}")))
}

/// What all stores of a node share.
pub(super) struct Shared {
    pub(super) config: StoresConfig,
    pub(super) cache: Cache,
    pub(super) reserve: Reserve,
    database: OnceCell<Arc<Database>>,
    /// Set once the data directory says that it has replicas.
    replicas: OnceCell<()>,
    /// Set once it says that it has hints.
    hints: OnceCell<()>,
    damage: OnceLock<String>,
    /// The place in the log that the stores follow. Every change of a store's record also writes it.
    pub(super) followed: Mutex<Option<LogPlace>>,
}

impl Shared {
    pub(super) fn new(config: StoresConfig) -> Self {
        let cache = Cache::new(config.cache_bytes);
        let reserve = Reserve::new(config.disk.clone(), config.dir.clone(), config.reserve_bytes);
        let (database, damage) = (OnceCell::new(), OnceLock::new());
        let (replicas, hints) = (OnceCell::new(), OnceCell::new());
        Self { config, cache, reserve, database, replicas, hints, damage, followed: Mutex::default() }
    }

    /// Return the database if it exists.
    pub(super) fn opened(&self) -> Option<&Arc<Database>> {
        self.database.get()
    }

    pub(super) fn set_database(&self, database: Arc<Database>) {
        // There is one open at the start, before anything else.
        let _ = self.database.set(database);
    }

    /// Return the database. Create it if there is none.
    pub(super) async fn database(&self) -> Result<Arc<Database>, StorageError> {
        let create = async {
            let config = self.config.clone();
            let created = annulus_ground::blocking(move || create(&config));
            let created = created.await.map_err(|_| StorageError::Closed)?;
            let database = created.map_err(|error| {
                StorageError::Unavailable(format!("the database of items cannot be created: {error}"))
            })?;
            self.write(&database, &[], &[]);
            Ok(database)
        };
        self.database.get_or_try_init(|| create).await.cloned()
    }

    /// Prepare the data directory for stores of modules with several replicas.
    pub(super) async fn prepare_replicas(&self) -> Result<(), StorageError> {
        let prepare = prepare(self.config.before_replicas.clone(), "replicas");
        self.replicas.get_or_try_init(|| prepare).await.copied()
    }

    /// Prepare the data directory for stores of items for other nodes.
    pub(super) async fn prepare_hints(&self) -> Result<(), StorageError> {
        let prepare = prepare(self.config.before_hints.clone(), "hints");
        self.hints.get_or_try_init(|| prepare).await.copied()
    }

    /// Write records and remove others, as one change, with the place in the log that they follow.
    pub(super) fn write(&self, database: &Database, records: &[Record], removed: &[bytes::Bytes]) {
        let mut ops: Vec<Op> = records.iter().map(|record| database.record(record)).collect();
        ops.extend(removed.iter().map(|key| Op { space: database.records, key: key.clone(), value: None }));
        ops.extend(self.followed(database));
        if !ops.is_empty() {
            let touches = vec![(0, database.records)];
            // After the end of the committer the next start finds the records as they were.
            let _ = database.committer.push(Change { ops, touches, store: None, done: None });
        }
    }

    /// Return the write of the place in the log that the stores follow, if it is known.
    pub(super) fn followed(&self, database: &Database) -> Option<Op> {
        let place = *self.followed.lock();
        place.map(|place| database.record(&Record::Followed(place)))
    }

    /// Refuse everything once damage was found.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        match self.damage.get() {
            None => Ok(()),
            Some(reason) => Err(StorageError::Damaged(reason.clone())),
        }
    }

    /// Return the damage that was found.
    pub(super) fn damage(&self) -> Option<&String> {
        self.damage.get()
    }

    /// Handle an error of the engine in a read. An error that the system may not repeat, such as too many open files,
    /// fails this read only.
    pub(super) fn read_error(&self, error: &Trouble) -> StorageError {
        if is_damage(error) {
            self.found_damage(error.to_string())
        } else {
            StorageError::Unavailable(format!("the database of items cannot be read now: {error}"))
        }
    }

    /// Note damage: the database serves nothing from now on, and is set aside at the next start.
    ///
    /// The engine cannot mend a block, and its first compaction that meets one ends all writes. So the rest of the
    /// database is not served either: what is read from it may be all that is left, and is kept for a salvage.
    pub(super) fn found_damage(&self, reason: String) -> StorageError {
        let reason = self.damage.get_or_init(|| {
            let path = self.config.dir.join(BAD);
            if let Err(error) = write_file(&self.config.disk, &path, &reason) {
                tracing::error!(%error, path = %path.display(), "cannot note that the database of items is damaged");
            }
            tracing::error!(reason, "the database of items is damaged and serves nothing; start the node again to set it aside");
            reason
        });
        StorageError::Damaged(reason.clone())
    }
}

fn write_file(disk: &Disk, path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = disk.open(path, Open::Empty)?;
    file.write_at(0, text.as_bytes())?;
    file.sync_all()?;
    disk.sync_dir(path.parent().unwrap_or(Path::new("")))
}

/// An open database.
pub(super) struct Database {
    pub(super) engine: Arc<dyn Engine>,
    /// The keyspace of the records.
    pub(super) records: SpaceId,
    pub(super) committer: Arc<Committer>,
    spaces: Arc<Spaces>,
}

impl Drop for Database {
    fn drop(&mut self) {
        self.committer.close();
    }
}

impl Database {
    /// Return the write of a record.
    pub(super) fn record(&self, record: &Record) -> Op {
        let (key, value) = record.encode();
        Op { space: self.records, key, value: Some(value) }
    }

    /// Wait until every change so far is durable.
    pub(super) async fn settle(&self) -> Result<(), StorageError> {
        let (settled, durable) = tokio::sync::oneshot::channel();
        let done: Box<dyn FnOnce() + Send> = Box::new(move || {
            let _ = settled.send(());
        });
        let (ops, touches) = (Vec::new(), Vec::new());
        self.committer.push(Change { ops, touches, store: None, done: Some(done) })?;
        durable.await.map_err(|_| StorageError::Closed)
    }

    /// Return the keyspace of a module's items. Create it if there is none. Return `None` while a former one is being
    /// removed. May block.
    pub(super) fn item_space(&self, module: ModuleUid) -> Result<Option<Arc<ItemSpace>>, Trouble> {
        let mut spaces = self.spaces.lock();
        if let Some(space) = spaces.get(&module) {
            return Ok(space.clone());
        }
        let id = self.engine.space(&format!("{ITEMS}{}", module.0))?;
        let space = Some(Arc::new(self.committer.item_space(module, id, &self.spaces)));
        spaces.insert(module, space.clone());
        Ok(space)
    }

    /// Remove the keyspace of an undeployed module once nothing uses it. The module returns under its uid only with
    /// another lineage.
    pub(super) fn end_space(&self, module: ModuleUid) {
        if let Some(space) = self.spaces.lock().insert(module, None).flatten() {
            space.end();
        }
    }
}

/// The outcome of opening.
pub(super) enum Found {
    /// There is no database.
    Nothing,
    Database(Arc<Database>, Vec<Record>),
    SetAside(SetAside),
}

/// Open the database if there is one, and set it aside if it is damaged or has lost changes.
///
/// # Errors
/// The system refuses to open it, or it is open elsewhere. Nothing was changed.
pub(super) fn open(config: &StoresConfig) -> Result<Found, DataDirError> {
    let (disk, dir) = (&config.disk, &config.dir);
    let io = |path: PathBuf| move |source| DataDirError::Io { path: path.clone(), source };
    let bad = match disk.read(&dir.join(BAD)) {
        Ok(reason) => Some(String::from_utf8_lossy(&reason).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(source) => return Err(io(dir.join(BAD))(source)),
    };
    let reason = match bad {
        Some(reason) => reason,
        None => match try_open(config)? {
            Ok(found) => return Ok(found),
            Err(reason) => reason,
        },
    };
    tracing::error!(reason, "the database of items is damaged and is set aside");
    let path = set_aside(config, &reason).map_err(io(dir.join(DATABASE)))?;
    Ok(Found::SetAside(SetAside { path, reason }))
}

/// Open the database. The inner error is the reason why it must be set aside.
fn try_open(config: &StoresConfig) -> Result<Result<Found, String>, DataDirError> {
    let path = config.dir.join(DATABASE);
    let io = |source| DataDirError::Io { path: config.dir.join(MARK), source };
    if config.disk.is_there(&config.dir.join(CREATING)) {
        remove_unfinished(config).map_err(io)?;
    }
    let is_there = config.disk.is_there(&path);
    if !is_there && !config.disk.is_there(&config.dir.join(MARK)) {
        return Ok(Ok(Found::Nothing));
    }
    let witness = Witness::open(&config.disk, &config.dir.join(MARK)).map_err(io)?;
    if !is_there {
        if witness.noted().is_empty() {
            return Ok(Ok(Found::Nothing));
        }
        return Ok(Err("it is missing".to_owned()));
    }
    let engine = match config.disk.engine(&path, &options(config)) {
        Ok(engine) => engine,
        Err(DataDirError::Database { source, .. }) if is_damage(&source) => {
            return Ok(Err(source.to_string()));
        }
        Err(DataDirError::Corrupt { reason, .. }) => return Ok(Err(reason)),
        Err(other) => return Err(other),
    };
    let suspect = config.dir.join(SUSPECT);
    if config.disk.is_there(&suspect) {
        match check(&*engine) {
            Ok(()) => {}
            Err(source) if is_damage(&source) => return Ok(Err(source.to_string())),
            Err(source) => return Err(DataDirError::Database { path, source }),
        }
        let cleared = config.disk.remove(&suspect).and_then(|()| config.disk.sync_dir(&config.dir));
        cleared.map_err(|source| DataDirError::Io { path: suspect, source })?;
    }
    match read(config, engine, witness) {
        Ok((database, records)) => Ok(Ok(Found::Database(Arc::new(database), records))),
        Err(Unusable::Damaged(reason)) => Ok(Err(reason)),
        Err(Unusable::Trouble(source)) if is_damage(&source) => Ok(Err(source.to_string())),
        Err(Unusable::Trouble(source)) => Err(DataDirError::Database { path, source }),
    }
}

enum Unusable {
    Damaged(String),
    Trouble(Trouble),
}

impl From<Trouble> for Unusable {
    fn from(error: Trouble) -> Self {
        Self::Trouble(error)
    }
}

/// Read everything in a database.
fn check(engine: &dyn Engine) -> Result<(), Trouble> {
    for name in engine.spaces() {
        let space = engine.space(&name)?;
        let mut last: Option<bytes::Bytes> = None;
        loop {
            let from = last.as_ref().map_or(Bound::Unbounded, |last| Bound::Excluded(&last[..]));
            let limit = ReadLimit { keys: usize::MAX, bytes: CHECK_BYTES };
            let read = engine.range(space, from, Bound::Unbounded, false, limit)?;
            match read.into_iter().next_back() {
                Some((key, _)) => last = Some(key),
                None => break,
            }
        }
    }
    Ok(())
}

/// Return the function that notes a failed commit for the next start.
fn suspects(config: &StoresConfig) -> Box<dyn Fn(&Trouble) + Send> {
    let (disk, path) = (config.disk.clone(), config.dir.join(SUSPECT));
    Box::new(move |error| {
        if let Err(failed) = write_file(&disk, &path, &error.to_string()) {
            tracing::error!(error = %failed, "cannot note that a commit of items failed");
        }
    })
}

/// Compare a database with its witness, and read its records.
fn read(
    config: &StoresConfig,
    engine: Arc<dyn Engine>,
    mut witness: Witness,
) -> Result<(Database, Vec<Record>), Unusable> {
    let names = engine.spaces();
    let mut numbers = BTreeMap::new();
    let mut modules = Vec::new();
    for name in &names {
        let module = name.strip_prefix(ITEMS).and_then(|uid| uid.parse().ok()).map(ModuleUid);
        let of = match module {
            Some(module) => module.0,
            None if name == header::SPACE => 0,
            None => continue,
        };
        let space = engine.space(name)?;
        modules.extend(module.map(|module| (module, space)));
        if let Some(number) = number_in(&*engine, space)? {
            numbers.insert(of, number);
        }
    }
    for (of, promised) in witness.noted() {
        let has = numbers.get(of).copied().unwrap_or(0);
        if has < *promised {
            return Err(Unusable::Damaged(format!(
                "it has lost acknowledged changes: keyspace {of} is at commit {has} of {promised}"
            )));
        }
    }
    let space = engine.space(header::SPACE)?;
    let mut records = Vec::new();
    for (key, value) in
        engine.range(space, Bound::Unbounded, Bound::Excluded(NUMBER_KEY), false, ReadLimit::NONE)?
    {
        let record = Record::decode(&key, &value);
        let unreadable = || Unusable::Damaged(format!("the record {} cannot be read", key.escape_ascii()));
        records.push(record.ok_or_else(unreadable)?);
    }
    // An undeploy whose last step was interrupted leaves a keyspace that no header names.
    let named = |module: ModuleUid| {
        records.iter().any(|record| matches!(record, Record::Header(_, header) if header.module == module))
    };
    for (module, space) in modules.iter().filter(|(module, _)| !named(*module)) {
        // The witness must not expect a keyspace that a crash may have removed.
        numbers.remove(&module.0);
        witness.note(&numbers).and_then(|()| witness.sync()).map_err(Trouble::from)?;
        engine.remove_space(*space)?;
    }
    let committer = Committer::start(engine.clone(), witness, numbers, suspects(config));
    Ok((Database { engine, records: space, committer, spaces: Arc::default() }, records))
}

fn number_in(engine: &dyn Engine, space: SpaceId) -> Result<Option<u64>, Unusable> {
    let Some(value) = engine.get(space, NUMBER_KEY)? else { return Ok(None) };
    let number = <[u8; 8]>::try_from(&value[..]).map(u64::from_be_bytes);
    number.map(Some).map_err(|_| Unusable::Damaged("a commit number cannot be read".to_owned()))
}

fn options(config: &StoresConfig) -> EngineOptions {
    EngineOptions::items(config.block_cache_bytes, config.uid)
}

/// Create the database.
fn create(config: &StoresConfig) -> Result<Arc<Database>, String> {
    (config.before_creation)()?;
    let (disk, dir) = (&config.disk, &config.dir);
    let said = |error: std::io::Error| error.to_string();
    // An attempt in this process may have failed before.
    remove_unfinished(config).map_err(said)?;
    write_file(disk, &dir.join(CREATING), "").map_err(said)?;
    let engine = disk.engine(&dir.join(DATABASE), &options(config)).map_err(|error| error.to_string())?;
    let records = engine.space(header::SPACE).map_err(|error| error.to_string())?;
    let witness = Witness::open(disk, &dir.join(MARK)).map_err(|error| format!("{MARK}: {error}"))?;
    disk.sync_dir(dir).map_err(said)?;
    disk.remove(&dir.join(CREATING)).and_then(|()| disk.sync_dir(dir)).map_err(said)?;
    let numbers = BTreeMap::<SpaceNumber, u64>::new();
    let committer = Committer::start(engine.clone(), witness, numbers, suspects(config));
    Ok(Arc::new(Database { engine, records, committer, spaces: Arc::default() }))
}

/// Remove what an interrupted creation has left.
fn remove_unfinished(config: &StoresConfig) -> std::io::Result<()> {
    let (disk, dir) = (&config.disk, &config.dir);
    if !disk.is_there(&dir.join(CREATING)) {
        return Ok(());
    }
    if disk.is_there(&dir.join(DATABASE)) {
        disk.remove_dir(&dir.join(DATABASE))?;
    }
    if disk.is_there(&dir.join(MARK)) {
        disk.remove(&dir.join(MARK))?;
    }
    disk.sync_dir(dir)?;
    disk.remove(&dir.join(CREATING))?;
    disk.sync_dir(dir)
}

/// Move database and witness into a directory of their own, and return it. If this is interrupted, the next start
/// continues, because the note of the damage is moved last.
fn set_aside(config: &StoresConfig, reason: &str) -> std::io::Result<PathBuf> {
    let (disk, dir) = (&config.disk, &config.dir);
    write_file(disk, &dir.join(BAD), reason)?;
    let taken = disk.list(dir)?.into_iter().filter_map(|entry| {
        entry.name.to_str().and_then(|name| name.strip_prefix(ASIDE)?.parse::<u64>().ok())
    });
    let aside = dir.join(format!("{ASIDE}{}", taken.max().unwrap_or(0) + 1));
    disk.create_dir(&aside, annulus_data_dir::Access::Owner)?;
    disk.sync_dir(dir)?;
    for name in [DATABASE, MARK, SUSPECT, BAD] {
        let from = dir.join(name);
        if disk.is_there(&from) {
            disk.rename(&from, &aside.join(name))?;
            disk.sync_dir(&aside)?;
            disk.sync_dir(dir)?;
        }
    }
    Ok(aside)
}
