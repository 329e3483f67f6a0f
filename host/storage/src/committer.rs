//! Group commit: one thread (one task in a simulation) commits everything that waits as one batch, synced within the
//! commit, and then finishes all of it (R11). No timer delays a batch: it has what arrived while the previous one was
//! synced.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use annulus_core::ids::ModuleUid;
use annulus_data_dir::{Engine, Op, SpaceId, Trouble, fatal};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::durable::Durable;
use super::error::StorageError;
use super::keys::StoreId;
use super::witness::{SYNC_AFTER, Witness};

/// Called in the committer's thread once a change is durable.
pub(super) type Done = Box<dyn FnOnce() + Send>;

/// The size of waiting changes beyond which vnodes run no further commands, in bytes, and the number of changes. At 60 MB
/// of journal a second the former is a second of work.
const CONGESTED_BYTES: usize = 64 << 20;
const CONGESTED_CHANGES: usize = 16 << 10;
/// Number of items that one step of a sweep removes.
const SWEEP_ITEMS: usize = 512;
/// Number of groups after which a sweep makes a step even if more changes wait.
const GROUPS_PER_SWEEP: u32 = 16;
/// Key of the commit number in each keyspace. No partition has the number FFFF.
pub(super) const NUMBER_KEY: &[u8] = &[0xff, 0xff, 63];

/// A keyspace, as the witness knows it: the uid of its module, or 0 for the records.
pub(super) type SpaceNumber = u64;

/// The keyspaces of modules that were used since the start; `None` for one that is being removed.
pub(super) type Spaces = Mutex<BTreeMap<ModuleUid, Option<Arc<ItemSpace>>>>;

/// The keyspace of a module's items, while anything uses it.
pub(super) struct ItemSpace {
    module: ModuleUid,
    pub(super) id: SpaceId,
    committer: Weak<Committer>,
    spaces: Weak<Spaces>,
    /// True once the module was undeployed and its stores are empty: the last user removes the keyspace.
    has_ended: AtomicBool,
}

impl ItemSpace {
    /// Have the keyspace removed once nothing uses it.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }
}

impl Drop for ItemSpace {
    fn drop(&mut self) {
        if self.has_ended.load(Ordering::Acquire)
            && let Some(committer) = self.committer.upgrade()
        {
            committer.remove(Gone { module: self.module, id: self.id, spaces: self.spaces.clone() });
        }
    }
}

/// A change that waits for its commit.
pub(super) struct Change {
    pub(super) ops: Vec<Op>,
    /// The keyspaces of these writes.
    pub(super) touches: Vec<(SpaceNumber, SpaceId)>,
    /// The store whose items change.
    pub(super) store: Option<Arc<Durable>>,
    pub(super) done: Option<Done>,
}

/// A dropped store whose items are to be removed.
pub(super) struct Sweep {
    pub(super) store: StoreId,
    pub(super) space: Arc<ItemSpace>,
    /// Called once no item is left.
    pub(super) done: Done,
}

/// A keyspace to remove: nothing uses it any more.
struct Gone {
    module: ModuleUid,
    id: SpaceId,
    spaces: Weak<Spaces>,
}

#[derive(Default)]
struct Queue {
    /// Bounded by [`Committer::ready`]: each vnode exceeds the limits by one command at most.
    changes: Vec<(u64, usize, Change)>,
    bytes: usize,
    /// Number of the last change.
    last: u64,
    /// Dropped stores, each with the number of the last change before it was dropped.
    sweeps: VecDeque<(u64, Sweep)>,
    gone: Vec<Gone>,
    closing: bool,
}

/// The handle of the thread.
pub(super) struct Committer {
    queue: Mutex<Queue>,
    wake: Notify,
    congested: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    groups: AtomicU64,
}

impl Committer {
    /// Start the thread. `numbers` are the commit numbers in the database.
    ///
    /// `failed` is called if a commit fails, before the process ends.
    pub(super) fn start(
        engine: Arc<dyn Engine>,
        witness: Witness,
        numbers: BTreeMap<SpaceNumber, u64>,
        failed: Box<dyn Fn(&Trouble) + Send>,
    ) -> Arc<Self> {
        let committer = Arc::new(Self {
            queue: Mutex::default(),
            wake: Notify::new(),
            congested: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            groups: AtomicU64::new(0),
        });
        let (durable, since_sweep) = (0, 0);
        let run =
            Run { committer: committer.clone(), engine, witness, numbers, failed, durable, since_sweep };
        annulus_ground::service("items-commit", run.run())
            .expect("a process that cannot start a thread cannot run");
        committer
    }

    /// Add a change behind all others, and return its number.
    ///
    /// # Errors
    /// The committer is closed: nobody would finish the change.
    pub(super) fn push(&self, change: Change) -> Result<u64, StorageError> {
        let bytes = change.ops.iter().map(|op| op.key.len() + op.value.as_ref().map_or(0, Bytes::len)).sum();
        let mut queue = self.queue.lock();
        if queue.closing {
            return Err(StorageError::Closed);
        }
        queue.last += 1;
        let number = queue.last;
        queue.changes.push((number, bytes, change));
        queue.bytes += bytes;
        let congested = queue.bytes > CONGESTED_BYTES || queue.changes.len() > CONGESTED_CHANGES;
        drop(queue);
        if congested {
            self.congested.send_if_modified(|was| !std::mem::replace(was, true));
        }
        self.wake.notify_one();
        Ok(number)
    }

    /// Remove the items of a dropped store.
    pub(super) fn sweep(&self, sweep: Sweep) {
        let mut queue = self.queue.lock();
        let last = queue.last;
        queue.sweeps.push_back((last, sweep));
        drop(queue);
        self.wake.notify_one();
    }

    /// Return a keyspace that has not ended.
    pub(super) fn item_space(
        self: &Arc<Self>,
        module: ModuleUid,
        id: SpaceId,
        spaces: &Arc<Spaces>,
    ) -> ItemSpace {
        let spaces = Arc::downgrade(spaces);
        ItemSpace { module, id, committer: Arc::downgrade(self), spaces, has_ended: AtomicBool::new(false) }
    }

    /// Remove a keyspace that nothing uses.
    fn remove(&self, gone: Gone) {
        self.queue.lock().gone.push(gone);
        self.wake.notify_one();
    }

    /// Wait while the changes that wait exceed the limits.
    pub(super) async fn ready(&self) {
        // A subscription takes a lock; this is on the path of every command.
        if !*self.congested.borrow() {
            return;
        }
        // The sender lives in `self`, so the wait ends only when the committer has caught up.
        let _ = self.congested.subscribe().wait_for(|congested| !congested).await;
    }

    /// Have the thread end behind all changes.
    pub(super) fn close(&self) {
        self.queue.lock().closing = true;
        self.wake.notify_one();
    }

    /// Wait until the thread has ended.
    pub(super) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Return the number of changes that wait, their bytes, and the number of commits so far.
    pub(super) fn load(&self) -> (usize, usize, u64) {
        let queue = self.queue.lock();
        (queue.changes.len(), queue.bytes, self.groups.load(Ordering::Relaxed))
    }
}

/// The thread's own state.
struct Run {
    committer: Arc<Committer>,
    engine: Arc<dyn Engine>,
    witness: Witness,
    numbers: BTreeMap<SpaceNumber, u64>,
    failed: Box<dyn Fn(&Trouble) + Send>,
    /// Number of the last change that is durable.
    durable: u64,
    /// Number of groups since the last step of a sweep.
    since_sweep: u32,
}

/// The next step of the thread.
enum Next {
    Group(Vec<(u64, usize, Change)>),
    Sweep(Sweep),
    Remove(Gone),
    Wait,
    End,
}

/// Ends the process if its thread panics. Otherwise the callers that wait for a change would wait forever.
struct EndsWithTheThread;

impl Drop for EndsWithTheThread {
    fn drop(&mut self) {
        if std::thread::panicking() && annulus_ground::Scope::current().is_none() {
            // The panic's own message is on stderr. The exit code is that of a failed write.
            std::process::exit(70);
        }
    }
}

impl Run {
    async fn run(mut self) {
        let _guard = EndsWithTheThread;
        loop {
            match self.next() {
                Next::Group(group) => self.commit(group).await,
                Next::Sweep(sweep) => self.sweep(sweep).await,
                Next::Remove(gone) => self.remove(&gone),
                Next::Wait => self.wait().await,
                Next::End => break,
            }
        }
        self.witness.sync().unwrap_or_else(|error| fatal(&error.into()));
        let Self { committer, engine, .. } = self;
        // A caller that waits for the end may open the database again.
        drop(engine);
        committer.ended.send_replace(true);
    }

    fn next(&mut self) -> Next {
        let mut queue = self.committer.queue.lock();
        if (queue.changes.is_empty() || self.since_sweep >= GROUPS_PER_SWEEP) && !queue.closing {
            // A change from before the drop may still wait, and its items would outlive the sweep.
            let durable = self.durable;
            if let Some((_, sweep)) = queue.sweeps.pop_front_if(|(last, _)| *last <= durable) {
                self.since_sweep = 0;
                return Next::Sweep(sweep);
            }
        }
        if !queue.changes.is_empty() {
            return Next::Group(std::mem::take(&mut queue.changes));
        }
        match queue.gone.pop() {
            Some(gone) => Next::Remove(gone),
            None if queue.closing => Next::End,
            None => Next::Wait,
        }
    }

    async fn wait(&mut self) {
        if !self.witness.is_behind() {
            return self.committer.wake.notified().await;
        }
        let woken = tokio::time::timeout(SYNC_AFTER, self.committer.wake.notified()).await;
        if woken.is_err() {
            self.witness.sync().unwrap_or_else(|error| fatal(&error.into()));
        }
    }

    async fn commit(&mut self, group: Vec<(u64, usize, Change)>) {
        self.since_sweep += 1;
        let (mut ops, mut touched) = (Vec::new(), BTreeMap::new());
        let (mut finished, mut bytes) = (Vec::with_capacity(group.len()), 0);
        for (number, size, change) in group {
            bytes += size;
            touched.extend(change.touches.iter().copied());
            ops.extend(change.ops);
            self.durable = number;
            finished.push((number, change.store, change.done));
        }
        self.write(last_of_each(ops), touched).await;
        self.forget(bytes);
        for (number, store, done) in finished {
            if let Some(store) = store {
                store.settled(number);
            }
            if let Some(done) = done {
                done();
            }
        }
    }

    /// Commit writes with the commit numbers of their keyspaces, then write the witness.
    async fn write(&mut self, mut ops: Vec<Op>, touched: BTreeMap<SpaceNumber, SpaceId>) {
        if ops.is_empty() {
            return;
        }
        for (space_number, space) in touched {
            let number = self.numbers.entry(space_number).or_default();
            *number += 1;
            let value = Bytes::copy_from_slice(&number.to_be_bytes());
            ops.push(Op { space, key: Bytes::from_static(NUMBER_KEY), value: Some(value) });
        }
        if let Err(error) = self.engine.commit(ops).await {
            (self.failed)(&error);
            fatal(&error);
        }
        self.committer.groups.fetch_add(1, Ordering::Relaxed);
        self.witness.note(&self.numbers).unwrap_or_else(|error| fatal(&error.into()));
    }

    /// Note that changes of this size no longer wait.
    fn forget(&self, bytes: usize) {
        let mut queue = self.committer.queue.lock();
        queue.bytes -= bytes;
        let congested = queue.bytes > CONGESTED_BYTES / 2 || queue.changes.len() > CONGESTED_CHANGES / 2;
        drop(queue);
        if !congested {
            self.committer.congested.send_if_modified(|was| std::mem::replace(was, false));
        }
    }

    /// Remove some items of a dropped store.
    async fn sweep(&mut self, sweep: Sweep) {
        let (from, to) = sweep.store.bounds();
        let bounds = (from.as_ref().map(|key| &key[..]), to.as_ref().map(|key| &key[..]));
        let keys = match self.engine.keys(sweep.space.id, bounds.0, bounds.1, SWEEP_ITEMS) {
            Ok(keys) => keys,
            Err(error) => {
                // The items take space until the next start tries again.
                return tracing::warn!(%error, "cannot remove the items of a dropped store");
            }
        };
        let last = keys.len() < SWEEP_ITEMS;
        let after = self.durable;
        let remove = |key| Op { space: sweep.space.id, key, value: None };
        let touched = BTreeMap::from([(sweep.space.module.0, sweep.space.id)]);
        self.write(keys.into_iter().map(remove).collect(), touched).await;
        if last {
            let Sweep { space, done, .. } = sweep;
            done();
            // If the module has ended, this may be the last use of its keyspace.
            drop(space);
        } else {
            self.committer.queue.lock().sweeps.push_back((after, sweep));
        }
    }

    fn remove(&mut self, gone: &Gone) {
        let Gone { module, id, spaces } = gone;
        // The witness must not expect a keyspace that a crash may have removed.
        self.numbers.remove(&module.0);
        let forgotten = self.witness.note(&self.numbers).and_then(|()| self.witness.sync());
        forgotten.unwrap_or_else(|error| fatal(&error.into()));
        if let Err(error) = self.engine.remove_space(*id) {
            tracing::warn!(%error, "cannot remove the keyspace of an undeployed module");
        }
        if let Some(spaces) = spaces.upgrade() {
            spaces.lock().remove(module);
        }
    }
}

/// Return the last write of each key, in order of the keys' last writes.
fn last_of_each(mut ops: Vec<Op>) -> Vec<Op> {
    let mut seen = HashSet::with_capacity(ops.len());
    let mut kept: Vec<bool> = ops.iter().rev().map(|op| seen.insert((op.space.0, op.key.clone()))).collect();
    kept.reverse();
    let mut kept = kept.into_iter();
    ops.retain(|_| kept.next().unwrap_or(true));
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_write_of_a_key_counts() {
        let op = |space, key: &'static str, value: Option<&'static str>| Op {
            space: SpaceId(space),
            key: Bytes::from_static(key.as_bytes()),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
        };
        let ops = vec![op(0, "a", Some("1")), op(1, "a", Some("2")), op(0, "b", None), op(0, "a", Some("3"))];
        assert_eq!(last_of_each(ops), [op(1, "a", Some("2")), op(0, "b", None), op(0, "a", Some("3"))]);
        assert_eq!(last_of_each(Vec::new()), []);
    }
}
