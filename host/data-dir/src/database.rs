//! The implementation of [`Engine`] by fjall.

use std::io::Write;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use annulus_ground::Scope;
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use futures_util::future::BoxFuture;
use parking_lot::RwLock;

use super::engine::{Engine, Op, SpaceId, Trouble};
use super::error::{DataDirError, corrupt};
use super::obstacle::database_trouble;

/// Size of a keyspace's memtable. Small, because a node has several keyspaces and tests run several nodes on
/// one machine; larger memtables would only delay flushes.
const KEYSPACE_MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;

/// Size of the block cache, shared by all keyspaces.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// A fjall database. Each of its keyspaces is a space.
struct Fjall {
    database: Database,
    /// The open keyspaces with their names, by id.
    spaces: RwLock<Vec<(String, Keyspace)>>,
}

/// Open a database, or create its files.
pub(super) fn open(path: &Path) -> Result<Arc<dyn Engine>, DataDirError> {
    let open = || Database::builder(path).cache_size(CACHE_BYTES).worker_threads(1).open();
    // fjall panics on some kinds of damage.
    match std::panic::catch_unwind(open) {
        Ok(Ok(database)) => Ok(Arc::new(Fjall { database, spaces: RwLock::default() })),
        Ok(Err(source)) => Err(DataDirError::Database { path: path.to_owned(), source: source.into() }),
        Err(_) => Err(corrupt(path, "the engine cannot read it")),
    }
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(KEYSPACE_MEMTABLE_BYTES)
}

impl Fjall {
    fn keyspace(&self, space: SpaceId) -> Keyspace {
        self.spaces.read()[space.0].1.clone()
    }
}

impl Engine for Fjall {
    fn space(&self, name: &str) -> Result<SpaceId, Trouble> {
        let mut spaces = self.spaces.write();
        if let Some(at) = spaces.iter().position(|(of, _)| of == name) {
            return Ok(SpaceId(at));
        }
        spaces.push((name.to_owned(), self.database.keyspace(name, options)?));
        Ok(SpaceId(spaces.len() - 1))
    }

    fn get(&self, space: SpaceId, key: &[u8]) -> Result<Option<Bytes>, Trouble> {
        Ok(self.keyspace(space).get(key)?.map(Bytes::from_owner))
    }

    fn range(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        back: bool,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        let items = self.keyspace(space).range::<&[u8], _>((from, to));
        let read = |item: fjall::Guard| {
            let (key, value) = item.into_inner()?;
            Ok((Bytes::from_owner(key), Bytes::from_owner(value)))
        };
        if back { items.rev().take(limit).map(read).collect() } else { items.take(limit).map(read).collect() }
    }

    fn write(&self, mut ops: Vec<Op>) -> Result<(), Trouble> {
        if ops.len() == 1
            && let Some(Op { space, key, value }) = ops.pop()
        {
            // A single write is passed to the system at once; a batch is passed with the next single write or
            // sync.
            let keyspace = self.keyspace(space);
            match value {
                Some(value) => keyspace.insert(key, &value[..])?,
                None => keyspace.remove(key)?,
            }
            return Ok(());
        }
        let mut batch = self.database.batch();
        for Op { space, key, value } in ops {
            let keyspace = self.keyspace(space);
            match value {
                Some(value) => batch.insert(&keyspace, key, &value[..]),
                None => batch.remove(&keyspace, key),
            }
        }
        Ok(batch.commit()?)
    }

    fn persist(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async { Ok(self.database.persist(PersistMode::SyncData)?) })
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
