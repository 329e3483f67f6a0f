//! A database in memory: named spaces, and a single journal of which a crash leaves a prefix.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::time::Duration;

use annulus_data_dir::{Engine, Op, ReadLimit, SpaceId, Trouble, collect_within};
use annulus_ground::Scope;
use bytes::Bytes;
use futures_util::future::{BoxFuture, pending};
use rand::RngExt;
use rand::rngs::SmallRng;

use super::tree::{NodeId, not_found, prefix};
use super::{Life, Needs};

type Table = BTreeMap<Bytes, Bytes>;

/// The contents of a database.
#[derive(Clone, Default)]
pub(super) struct Stored {
    /// Names of the spaces; empty for a removed one. A space is durable as soon as it is created, and removed for good
    /// at once, as in fjall.
    names: Vec<String>,
    /// Contents including the whole journal.
    now: Vec<Table>,
    /// Persisted contents.
    durable: Vec<Table>,
    /// Batches written since the last persist.
    journal: Vec<Vec<Op>>,
    /// Number of batches persisted before those of the journal.
    before: u64,
    /// Number of the journal's batches that were handed to the system.
    flushed: usize,
    /// Number of the process that has the database open.
    open: Option<u64>,
    /// Whether files are missing: now, and after a loss of power.
    damaged: (bool, bool),
}

fn apply(tables: &mut [Table], batch: &[Op]) {
    for Op { space, key, value } in batch {
        match value {
            Some(value) => drop(tables[space.0].insert(key.clone(), value.clone())),
            None => drop(tables[space.0].remove(key)),
        }
    }
}

impl Stored {
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.0
    }

    pub(super) fn damage(&mut self) {
        self.damaged.0 = true;
    }

    /// Open the database for a process. Return false if that process has it open already.
    pub(super) fn open(&mut self, life: u64) -> bool {
        self.open.replace(life) != Some(life)
    }

    fn space(&mut self, name: &str) -> SpaceId {
        let at = self.names.iter().position(|of| of == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.now.push(Table::new());
            self.durable.push(Table::new());
            self.names.len() - 1
        });
        SpaceId(at)
    }

    fn remove(&mut self, space: SpaceId) {
        self.names[space.0].clear();
        self.now[space.0].clear();
        self.durable[space.0].clear();
    }

    fn write(&mut self, batch: Vec<Op>) {
        apply(&mut self.now, &batch);
        // As in fjall, a batch of one operation also hands all earlier batches to the system.
        let single = batch.len() == 1;
        self.journal.push(batch);
        if single {
            self.flushed = self.journal.len();
        }
    }

    /// Append a batch to the journal and return its number. Reads do not see it before [`Stored::committed`].
    fn append(&mut self, batch: Vec<Op>) -> u64 {
        self.journal.push(batch);
        self.written()
    }

    /// Record that a batch is on disk with all earlier ones, and make it visible.
    fn committed(&mut self, number: u64, batch: &[Op]) {
        apply(&mut self.now, batch);
        self.persisted(number);
    }

    /// Return the number of batches ever written.
    fn written(&self) -> u64 {
        self.before + self.journal.len() as u64
    }

    /// Record that all batches up to this number are on disk.
    fn persisted(&mut self, upto: u64) {
        let count = usize::try_from(upto.saturating_sub(self.before)).unwrap_or(usize::MAX);
        let count = count.min(self.journal.len());
        self.keep(count);
        self.flushed = self.flushed.saturating_sub(count);
    }

    fn keep(&mut self, count: usize) {
        for batch in self.journal.drain(..count) {
            apply(&mut self.durable, &batch);
        }
        self.before += count as u64;
    }

    /// Record that everything that a process found when it opened the database is on disk.
    pub(super) fn sync_found(&mut self) {
        self.persisted(self.written());
    }

    pub(super) fn settle(&mut self) {
        self.persisted(self.written());
        self.open = None;
        self.damaged.1 = self.damaged.0;
    }

    pub(super) fn kill(&mut self, choices: &mut SmallRng) {
        self.open = None;
        let left = prefix(choices, self.flushed, self.journal.len());
        self.journal.truncate(left);
        self.flushed = left;
        self.now = self.durable.clone();
        self.journal.iter().for_each(|batch| apply(&mut self.now, batch));
    }

    pub(super) fn lose_power(&mut self, choices: &mut SmallRng) {
        let left = prefix(choices, 0, self.journal.len());
        self.keep(left);
        self.journal.clear();
        self.flushed = 0;
        self.now = self.durable.clone();
        let (now, durable) = self.damaged;
        let damaged = durable || now && choices.random();
        self.damaged = (damaged, damaged);
    }
}

/// An open database; it closes with its last handle.
pub(super) struct MemoryEngine {
    pub(super) life: Life,
    pub(super) node: NodeId,
    pub(super) path: PathBuf,
}

impl MemoryEngine {
    /// Start to persist: return the number of batches to persist and the time that this takes.
    fn begin_persist(&self) -> Result<Option<(u64, Duration)>, Trouble> {
        let Some(mut state) = self.life.step("begin to persist", &self.path, Needs::Sync)? else {
            return Ok(None);
        };
        let upto = state.tree.store(self.node)?.written();
        Ok(Some((upto, state.sync_time())))
    }

    /// Complete a persist. Return false if the process has ended.
    fn end_persist(&self, upto: u64) -> Result<bool, Trouble> {
        let Some(mut state) = self.life.step("end to persist", &self.path, Needs::Sync)? else {
            return Ok(false);
        };
        state.tree.store(self.node)?.persisted(upto);
        Ok(true)
    }

    /// Append a batch to the journal: return its number and the time of its sync.
    fn begin_commit(&self, batch: &[Op]) -> Result<Option<(u64, Duration)>, Trouble> {
        let Some(mut state) = self.life.step("begin to commit to", &self.path, Needs::Room)? else {
            return Ok(None);
        };
        let number = state.tree.store(self.node)?.append(batch.to_vec());
        Ok(Some((number, state.sync_time())))
    }

    /// Complete a commit. Return false if the process has ended.
    fn end_commit(&self, number: u64, batch: &[Op]) -> Result<bool, Trouble> {
        let Some(mut state) = self.life.step("end to commit to", &self.path, Needs::Sync)? else {
            return Ok(false);
        };
        state.tree.store(self.node)?.committed(number, batch);
        Ok(true)
    }

    fn look<T>(&self, look: impl FnOnce(&mut Stored) -> T) -> Result<T, Trouble> {
        let mut state = self.life.shared.lock();
        Ok(look(state.tree.store(self.node)?))
    }
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        let life = self.life.number;
        let closed = self.look(|store| {
            if store.open == Some(life) {
                store.open = None;
            }
        });
        // This fails if the database was removed from the disk.
        drop(closed);
    }
}

impl Engine for MemoryEngine {
    fn space(&self, name: &str) -> Result<SpaceId, Trouble> {
        if let Some(at) = self.look(|store| store.names.iter().position(|of| of == name))? {
            return Ok(SpaceId(at));
        }
        let what = format!("make the space {name} of");
        match self.life.step(&what, &self.path, Needs::Room)? {
            Some(mut state) => Ok(state.tree.store(self.node)?.space(name)),
            None => Err(not_found().into()),
        }
    }

    fn spaces(&self) -> Vec<String> {
        let names = self.look(|store| store.names.iter().filter(|name| !name.is_empty()).cloned().collect());
        let mut names: Vec<String> = names.unwrap_or_default();
        names.sort();
        names
    }

    fn remove_space(&self, space: SpaceId) -> Result<(), Trouble> {
        if let Some(mut state) = self.life.step("remove a space of", &self.path, Needs::Nothing)? {
            state.tree.store(self.node)?.remove(space);
        }
        Ok(())
    }

    fn get(&self, space: SpaceId, key: &[u8]) -> Result<Option<Bytes>, Trouble> {
        self.look(|store| store.now.get(space.0).and_then(|table| table.get(key).cloned()))
    }

    fn range(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        back: bool,
        limit: ReadLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
        // `BTreeMap::range` panics if the range ends before it starts.
        let ends_before = match (from, to) {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
                from >= to
            }
            _ => false,
        };
        if ends_before {
            return Ok(Vec::new());
        }
        self.look(|store| {
            let table = store.now.get(space.0).into_iter();
            let items = table.flat_map(|table| table.range::<[u8], _>((from, to)));
            let item = |(key, value): (&Bytes, &Bytes)| Ok((key.clone(), value.clone()));
            if back {
                collect_within(items.rev().map(item), limit)
            } else {
                collect_within(items.map(item), limit)
            }
        })?
    }

    fn size(&self, space: SpaceId, key: &[u8]) -> Result<Option<usize>, Trouble> {
        Ok(self.get(space, key)?.map(|value| value.len()))
    }

    fn keys(
        &self,
        space: SpaceId,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Bytes>, Trouble> {
        let items = self.range(space, from, to, false, ReadLimit::keys(limit))?;
        Ok(items.into_iter().map(|(key, _)| key).collect())
    }

    fn write(&self, batch: Vec<Op>) -> Result<(), Trouble> {
        if let Some(mut state) = self.life.step("write to", &self.path, Needs::Room)? {
            state.tree.store(self.node)?.write(batch);
        }
        Ok(())
    }

    fn persist(&self) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async {
            if let Some((upto, time)) = self.begin_persist()? {
                if Scope::current().is_some() {
                    tokio::time::sleep(time).await;
                }
                if self.end_persist(upto)? {
                    return Ok(());
                }
            }
            // The process has ended, so its caller must not learn that the data is persisted.
            pending().await
        })
    }

    fn commit(&self, batch: Vec<Op>) -> BoxFuture<'_, Result<(), Trouble>> {
        Box::pin(async move {
            if let Some((number, time)) = self.begin_commit(&batch)? {
                if Scope::current().is_some() {
                    tokio::time::sleep(time).await;
                }
                if self.end_commit(number, &batch)? {
                    return Ok(());
                }
            }
            // As above.
            pending().await
        })
    }
}
