//! The implementation of [`Engine`] by fjall.

use std::io::{ErrorKind, Write};
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use annulus_ground::Scope;
use bytes::Bytes;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch,
    PersistMode,
};
use futures_util::future::BoxFuture;
use parking_lot::RwLock;

use super::engine::{Engine, EngineOptions, Op, ReadLimit, SpaceId, Trouble, collect_within};
use super::error::{DataDirError, corrupt};
use super::obstacle::database_trouble;

/// A fjall database. Each of its keyspaces is a space.
struct Fjall {
    database: Database,
    options: EngineOptions,
    /// The open keyspaces with their names, by id; `None` for a removed one.
    spaces: RwLock<Vec<Option<(String, Keyspace)>>>,
}

/// Open a database, or create its files.
pub(super) fn open(path: &Path, options: &EngineOptions) -> Result<Arc<dyn Engine>, DataDirError> {
    let open = || {
        let mut builder =
            Database::builder(path).cache_size(options.cache_bytes).worker_threads(options.workers);
        if !options.compresses_journal {
            builder = builder.journal_compression(CompressionType::None);
        }
        builder.open()
    };
    // fjall panics on some kinds of damage.
    match std::panic::catch_unwind(open) {
        Ok(Ok(database)) => {
            // A former process may have written what the system has not brought to the disk yet. A loss of power must
            // not take back anything that was answered from it.
            database.persist(PersistMode::SyncAll).map_err(|error| DataDirError::Io {
                path: path.to_owned(),
                source: std::io::Error::other(error),
            })?;
            Ok(Arc::new(Fjall { database, options: *options, spaces: RwLock::default() }))
        }
        Ok(Err(source)) => Err(DataDirError::Database { path: path.to_owned(), source: source.into() }),
        Err(_) => Err(corrupt(path, "the engine cannot read it")),
    }
}

fn keyspace_options(options: &EngineOptions) -> KeyspaceCreateOptions {
    let separation = options.separates_from_bytes;
    KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes).with_kv_separation(
        separation.map(|bytes| KvSeparationOptions::default().separation_threshold(bytes)),
    )
}

/// Read, and report a panic of the engine, which some kinds of damage cause, as damage.
fn read<T>(read: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
    std::panic::catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(std::io::Error::new(ErrorKind::InvalidData, "the engine panicked while it was reading").into())
    })
}

impl Fjall {
    fn keyspace(&self, space: SpaceId) -> Keyspace {
        let keyspace = self.spaces.read()[space.0].as_ref().map(|(_, keyspace)| keyspace.clone());
        keyspace.expect("a removed space is not used")
    }

    fn batch(&self, ops: Vec<Op>) -> OwnedWriteBatch {
        let mut batch = OwnedWriteBatch::with_capacity(self.database.clone(), ops.len());
        let spaces = self.spaces.read();
        for Op { space, key, value } in ops {
            let (_, keyspace) = spaces[space.0].as_ref().expect("a removed space is not used");
            match value {
                Some(value) => batch.insert(keyspace, &key[..], &value[..]),
                None => batch.remove(keyspace, &key[..]),
            }
        }
        batch
    }
}

impl Engine for Fjall {
    fn space(&self, name: &str) -> Result<SpaceId, Trouble> {
        let mut spaces = self.spaces.write();
        if let Some(at) = spaces.iter().position(|space| space.as_ref().is_some_and(|(of, _)| of == name)) {
            return Ok(SpaceId(at));
        }
        let keyspace = self.database.keyspace(name, || keyspace_options(&self.options))?;
        spaces.push(Some((name.to_owned(), keyspace)));
        Ok(SpaceId(spaces.len() - 1))
    }

    fn spaces(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.database.list_keyspace_names().iter().map(|name| name.to_string()).collect();
        names.sort();
        names
    }

    fn remove_space(&self, space: SpaceId) -> Result<(), Trouble> {
        let removed = self.spaces.write()[space.0].take();
        removed.map_or(Ok(()), |(_, keyspace)| Ok(self.database.delete_keyspace(keyspace)?))
    }

    fn get(&self, space: SpaceId, key: &[u8]) -> Result<Option<Bytes>, Trouble> {
        read(|| Ok(self.keyspace(space).get(key)?.map(Bytes::from_owner)))
    }

    fn size(&self, space: SpaceId, key: &[u8]) -> Result<Option<usize>, Trouble> {
        read(|| Ok(self.keyspace(space).size_of(key)?.map(|size| size as usize)))
    }

    fn range(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        back: bool,
        limit: ReadLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        let item = |item: fjall::Guard| {
            let (key, value) = item.into_inner()?;
            Ok((Bytes::from_owner(key), Bytes::from_owner(value)))
        };
        read(|| {
            let items = self.keyspace(space).range::<&[u8], _>((from, to));
            if back {
                collect_within(items.rev().map(item), limit)
            } else {
                collect_within(items.map(item), limit)
            }
        })
    }

    fn keys(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, Trouble> {
        read(|| {
            let items = self.keyspace(space).range::<&[u8], _>((from, to)).take(limit);
            items.map(|item| Ok(Bytes::from_owner(item.key()?))).collect()
        })
    }

    fn write(&self, mut ops: Vec<Op>) -> Result<(), Trouble> {
        if ops.len() == 1
            && let Some(Op { space, key, value }) = ops.pop()
        {
            // A single write is passed to the system at once; a batch is passed with the next single write or
            // sync.
            let keyspace = self.keyspace(space);
            match value {
                Some(value) => keyspace.insert(&key[..], &value[..])?,
                None => keyspace.remove(&key[..])?,
            }
            return Ok(());
        }
        Ok(self.batch(ops).commit()?)
    }

    fn persist(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async { Ok(self.database.persist(PersistMode::SyncData)?) })
    }

    fn commit(&self, batch: Vec<Op>) -> BoxFuture<'_, Result<(), Trouble>> {
        // Within a commit the engine syncs the journal before it inserts into the memtables. With a commit and then a
        // sync, reads would see a batch that a crash can still take back.
        Box::pin(async { Ok(self.batch(batch).durability(Some(PersistMode::SyncData)).commit()?) })
    }
}

/// End the process after a failed write or sync: the contents of the disk are then unknown, and other nodes
/// replace this one (D7). In a simulation, kill the node.
pub fn fatal(error: &Trouble) -> ! {
    let trouble =
        database_trouble(error, "The contents of the disk are unknown: check the disk, then start again");
    tracing::error!(trouble, "the database failed to write; ending this process");
    if Scope::current().is_some() {
        annulus_ground::die();
    }
    // The process must end even if stderr fails too.
    let stderr = &mut std::io::stderr();
    drop(writeln!(stderr, "annulus: the database failed to write, ending this process: {trouble}"));
    std::process::exit(70)
}
