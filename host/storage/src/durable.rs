//! A store on disk.
//!
//! A change is visible to its vnode as soon as it waits for the committer: until it is durable it is in an overlay over the
//! engine. What waits for durability is not the change but the answers that tell of it (R11).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use annulus_core::ids::ModuleUid;
use annulus_core::item::{Budget, ItemAddr, Page, RangeDigest, Version};
use annulus_data_dir::{Op, ReadLimit};
use bytes::Bytes;
use parking_lot::Mutex;

use super::batch::Batch;
use super::committer::{Change, Done, ItemSpace};
use super::database::{Database, Shared};
use super::error::StorageError;
use super::header::{Closed, Header, Record, StoreRole};
use super::items::{Counts, Scope, Writer};
use super::keys::{self, StoreId, VALUE_HEAD};
use super::page::{Selection, page};

/// Bytes of items that one step of the count of a store reads.
const COUNT_BYTES: usize = 1 << 20;

/// The budget of one read of all items of a key.
const KEY_PAGE: Budget = Budget { items: 1024, bytes: 256 << 10 };

/// A store on disk.
pub(super) struct Durable {
    shared: Arc<Shared>,
    pub(super) module: ModuleUid,
    pub(super) id: StoreId,
    /// The open database with the module's keyspace, once the store was opened.
    place: OnceLock<(Arc<Database>, Arc<ItemSpace>)>,
    state: Mutex<State>,
}

struct State {
    role: StoreRole,
    /// True if the store has a header, in the database or on the way there.
    has_header: bool,
    /// The mark of the header that the store was closed in order. The next change removes it.
    closed: Option<Closed>,
    /// The size of the store; `None` until it is opened.
    counts: Option<Counts>,
    /// The changes that are not durable yet, with their numbers.
    overlay: BTreeMap<ItemAddr, (u64, Option<Version>)>,
    /// The answers that wait, in the order in which they came, with the numbers of the changes that they wait for.
    waiting: Vec<(u64, Done)>,
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").field("module", &self.module).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Durable {
    /// Create a store that was not opened yet. `header` is that in the database.
    pub(super) fn new(
        shared: Arc<Shared>,
        id: StoreId,
        module: ModuleUid,
        role: StoreRole,
        header: Option<Header>,
    ) -> Self {
        let state = State {
            role,
            has_header: header.is_some(),
            closed: header.and_then(|header| header.closed),
            counts: None,
            overlay: BTreeMap::new(),
            waiting: Vec::new(),
        };
        Self { shared, module, id, place: OnceLock::new(), state: Mutex::new(state) }
    }

    pub(super) fn has_header(&self) -> bool {
        self.state.lock().has_header
    }

    pub(super) fn role(&self) -> StoreRole {
        self.state.lock().role
    }

    /// Open the database, create the module's keyspace, and count the items unless the store was closed in order.
    pub(super) async fn open(self: &Arc<Self>) -> Result<Option<Writer>, StorageError> {
        self.shared.check()?;
        // A store of an ended module must not create the module's keyspace again.
        if self.role() == StoreRole::Dropped {
            return Err(StorageError::Closed);
        }
        if self.place.get().is_none() {
            let database = self.shared.database().await?;
            match self.role() {
                StoreRole::Replica { .. } => self.shared.prepare_replicas().await?,
                StoreRole::Hint => self.shared.prepare_hints().await?,
                StoreRole::Member | StoreRole::Stage(_) | StoreRole::Aside | StoreRole::Dropped => {}
            }
            let (of, module) = (database.clone(), self.module);
            let space = annulus_ground::blocking(move || of.item_space(module));
            let space = space.await.map_err(|_| StorageError::Closed)?;
            let removed = || StorageError::Unavailable("former items of the module are being removed".into());
            let space = space.map_err(|error| self.shared.read_error(&error))?.ok_or_else(removed)?;
            // If two calls race, the first one's is used.
            let _ = self.place.set((database, space));
        }
        let (known, closed) = {
            let state = self.state.lock();
            if state.role == StoreRole::Dropped {
                return Err(StorageError::Closed);
            }
            (state.counts, state.closed)
        };
        if known.is_none() {
            let counts = match closed {
                Some(closed) => closed.counts(),
                None => self.count().await?,
            };
            self.state.lock().counts.get_or_insert(counts);
        }
        Ok(closed.map(Closed::writer))
    }

    /// Count the items in the engine.
    async fn count(&self) -> Result<Counts, StorageError> {
        let mut counts = Counts::default();
        if !self.state.lock().has_header {
            return Ok(counts);
        }
        let (mut from, to) = self.id.bounds();
        loop {
            let limit = ReadLimit { keys: usize::MAX, bytes: COUNT_BYTES };
            let (read, whole) = self.read(from, to.clone(), false, limit).await?;
            for (key, value) in &read {
                let addr = keys::addr_of(key).ok_or_else(|| self.unreadable(key))?;
                counts.items += 1;
                counts.bytes +=
                    (addr.key.len() + addr.sort.len() + value.len().saturating_sub(VALUE_HEAD)) as u64;
            }
            match read.last() {
                Some((last, _)) if !whole => from = Bound::Excluded(last.clone()),
                _ => return Ok(counts),
            }
        }
    }

    fn place(&self) -> Result<(&Arc<Database>, &Arc<ItemSpace>), StorageError> {
        self.shared.check()?;
        let (database, space) = self.place.get().ok_or(StorageError::Closed)?;
        Ok((database, space))
    }

    fn unreadable(&self, key: &[u8]) -> StorageError {
        self.shared.found_damage(format!("the item {} has an unknown format", key.escape_ascii()))
    }

    /// Read a range of the engine in a thread that may block. The flag is true if the range has nothing more.
    async fn read(
        &self,
        from: Bound<Bytes>,
        to: Bound<Bytes>,
        back: bool,
        limit: ReadLimit,
    ) -> Result<(Vec<(Bytes, Bytes)>, bool), StorageError> {
        let (database, space) = self.place()?;
        let (engine, space) = (database.engine.clone(), space.clone());
        let read = annulus_ground::blocking(move || {
            let (from, to) = (from.as_ref().map(|key| &key[..]), to.as_ref().map(|key| &key[..]));
            engine.range(space.id, from, to, back, limit)
        });
        let read = read.await.map_err(|_| StorageError::Closed)?;
        let read = read.map_err(|error| self.shared.read_error(&error))?;
        let bytes: usize = read.iter().map(|(key, value)| key.len() + value.len()).sum();
        let whole = read.len() < limit.keys && bytes < limit.bytes;
        Ok((read, whole))
    }

    /// Return what overlay and cache know of an item.
    fn known(&self, addr: &ItemAddr, key: &[u8]) -> Option<Option<Version>> {
        let state = self.state.lock();
        if let Some((_, version)) = state.overlay.get(addr) {
            return Some(version.clone());
        }
        drop(state);
        self.shared.cache.get(key)
    }

    pub(super) async fn get(&self, addr: &ItemAddr) -> Result<Option<Version>, StorageError> {
        let key = self.id.key(addr);
        // No item has such a key.
        if key.len() > keys::MAX_KEY {
            return Ok(None);
        }
        if let Some(known) = self.known(addr, &key) {
            self.check_kept()?;
            return Ok(known);
        }
        let (database, space) = self.place()?;
        let (engine, space, at) = (database.engine.clone(), space.clone(), key.clone());
        let read = annulus_ground::blocking(move || engine.get(space.id, &at));
        let read = read.await.map_err(|_| StorageError::Closed)?;
        let value = read.map_err(|error| self.shared.read_error(&error))?;
        let version = match value {
            Some(value) => Some(keys::decode(&value).ok_or_else(|| self.unreadable(&key))?),
            None => None,
        };
        self.check_kept()?;
        self.shared.cache.put(key, version.clone());
        Ok(version)
    }

    /// Return an error if the store was dropped: a read may have missed items that are removed in the background.
    fn check_kept(&self) -> Result<(), StorageError> {
        if self.role() == StoreRole::Dropped { Err(StorageError::Closed) } else { Ok(()) }
    }

    /// Return the digest of the items of a key, if it is known and all of them are durable.
    pub(super) fn known_digest(&self, key: &[u8]) -> Option<RangeDigest> {
        self.place().ok()?;
        self.check_kept().ok()?;
        let digest = self.shared.cache.digest(&self.first_of(key)?)?;
        // A change that comes in between was not acknowledged when the digest was asked for.
        self.is_settled(Scope::Key(key)).then_some(digest)
    }

    /// Return the digest of the items of a key as its vnode sees them. Only the vnode may ask, between two changes.
    pub(super) async fn digest(&self, key: &[u8]) -> Result<RangeDigest, StorageError> {
        self.place()?;
        self.check_kept()?;
        let first = self.first_of(key);
        if let Some(digest) = first.as_ref().and_then(|first| self.shared.cache.digest(first)) {
            return Ok(digest);
        }
        let selection = Selection { key: Some(key.to_vec()), ..Selection::ALL };
        let (mut digest, mut after) = (RangeDigest::default(), None);
        loop {
            let page = self.page(&Batch::default(), &selection, after.as_deref(), KEY_PAGE).await?;
            page.items.iter().for_each(|item| digest.add(item));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if let Some(first) = first {
            self.shared.cache.put_digest(first, digest);
        }
        Ok(digest)
    }

    /// Return the place in the engine of the first item that a key may have; `None` if none of its items fits there.
    fn first_of(&self, key: &[u8]) -> Option<Bytes> {
        let first = self.id.key(&ItemAddr { key: key.to_vec(), sort: Vec::new() });
        (first.len() <= keys::MAX_KEY).then_some(first)
    }

    /// Follow the changes of items, of which `replaced` was there before: `None` if that is not known.
    fn follow_digest(&self, addr: &ItemAddr, replaced: Option<Option<&Version>>, change: Option<&Version>) {
        let Some(first) = self.first_of(&addr.key) else { return };
        let cache = &self.shared.cache;
        let Some(mut digest) = cache.digest(&first) else { return };
        let Some(replaced) = replaced else { return cache.forget_digest(&first) };
        if let Some(replaced) = replaced {
            digest.remove_at(addr, replaced);
        }
        if let Some(change) = change {
            digest.add_at(addr, change);
        }
        cache.put_digest(first, digest);
    }

    pub(super) async fn page(
        &self,
        over: &Batch,
        selection: &Selection,
        after: Option<&[u8]>,
        limit: Budget,
    ) -> Result<Page, StorageError> {
        let (mut from, mut to) = selection.bounds(after);
        let mut all = Page::default();
        loop {
            // The overlay comes first: a change that becomes durable in between is in the engine then.
            let mut below = self.overlay_within(&from, &to);
            let (first, end) = self.id.range(&from, &to);
            // One item more than the page takes shows whether another page follows.
            let keys = (limit.items as usize).saturating_sub(all.items.len()).saturating_add(1);
            let bytes = (limit.bytes as usize).max(1);
            let (read, whole) = self.read(first, end, selection.reverse, ReadLimit { keys, bytes }).await?;
            let mut seen = None;
            for (key, value) in read {
                let addr = keys::addr_of(&key).ok_or_else(|| self.unreadable(&key))?;
                let version = keys::decode(&value).ok_or_else(|| self.unreadable(&key))?;
                below.entry(addr.clone()).or_insert(Some(version));
                seen = Some(addr);
            }
            // Beyond the last item read, the engine may have items before those of the overlay.
            let (part_from, part_to) = match seen.filter(|_| !whole) {
                None => (from.clone(), to.clone()),
                Some(seen) if selection.reverse => (Bound::Included(seen), to.clone()),
                Some(seen) => (from.clone(), Bound::Included(seen)),
            };
            let part: BTreeMap<ItemAddr, Version> = match is_empty(&part_from, &part_to) {
                true => BTreeMap::new(),
                false => below
                    .range((part_from.clone(), part_to.clone()))
                    .filter_map(|(addr, version)| Some((addr.clone(), version.clone()?)))
                    .collect(),
            };
            let seen = over.scan(part.iter(), part_from.clone(), part_to.clone(), selection.reverse);
            all = page(all, seen, selection, limit);
            self.check_kept()?;
            if all.next.is_some() || whole {
                return Ok(all);
            }
            match (selection.reverse, part_from, part_to) {
                (true, Bound::Included(seen), _) => to = Bound::Excluded(seen),
                (false, _, Bound::Included(seen)) => from = Bound::Excluded(seen),
                _ => return Ok(all),
            }
        }
    }

    fn overlay_within(
        &self,
        from: &Bound<ItemAddr>,
        to: &Bound<ItemAddr>,
    ) -> BTreeMap<ItemAddr, Option<Version>> {
        let state = self.state.lock();
        if is_empty(from, to) || state.overlay.is_empty() {
            return BTreeMap::new();
        }
        let within = state.overlay.range((from.clone(), to.clone()));
        within.map(|(addr, (_, version))| (addr.clone(), version.clone())).collect()
    }

    pub(super) async fn apply(
        self: &Arc<Self>,
        changes: Vec<(ItemAddr, Option<Version>)>,
    ) -> Result<(), StorageError> {
        let (database, space) = self.place()?;
        // The last change of an address counts.
        let changes: BTreeMap<ItemAddr, Option<Version>> = changes.into_iter().collect();
        let (mut replaced, mut before) =
            (Vec::with_capacity(changes.len()), Vec::with_capacity(changes.len()));
        let mut ops = Vec::with_capacity(changes.len() + 1);
        let mut unknown = Vec::new();
        for (addr, change) in &changes {
            let key = self.id.key(addr);
            if key.len() > keys::MAX_KEY {
                return Err(StorageError::TooLong(key.len()));
            }
            let known = self.known(addr, &key);
            if known.is_none() {
                unknown.push((replaced.len(), key.clone()));
            }
            replaced.push(known.as_ref().and_then(|version| Some(version.as_ref()?.value.len())));
            before.push(known);
            ops.push(Op { space: space.id, key, value: change.as_ref().map(keys::encode) });
        }
        if !unknown.is_empty() {
            let (engine, space) = (database.engine.clone(), space.clone());
            let sizes = annulus_ground::blocking(move || {
                let size = |(index, key): (usize, Bytes)| Ok((index, engine.size(space.id, &key)?));
                unknown.into_iter().map(size).collect::<Result<Vec<_>, annulus_data_dir::Trouble>>()
            });
            let sizes = sizes.await.map_err(|_| StorageError::Closed)?;
            for (index, size) in sizes.map_err(|error| self.shared.read_error(&error))? {
                replaced[index] = size.map(|size| size.saturating_sub(VALUE_HEAD));
            }
        }
        let written: u64 = changes.values().flatten().map(|version| version.value.len() as u64).sum();
        let mut state = self.state.lock();
        if state.role == StoreRole::Dropped {
            return Err(StorageError::Closed);
        }
        let mut counts = state.counts.ok_or(StorageError::Closed)?;
        for ((addr, change), replaced) in changes.iter().zip(replaced) {
            let size = |value: usize| (addr.key.len() + addr.sort.len() + value) as u64;
            if let Some(value) = replaced {
                counts.items -= 1;
                counts.bytes -= size(value);
            }
            if let Some(version) = change {
                counts.items += 1;
                counts.bytes += size(version.value.len());
            }
        }
        let mut touches = vec![(self.module.0, space.id)];
        // The mark of an orderly close, and the header of a new store, belong to the first change.
        if !state.has_header || state.closed.is_some() {
            ops.push(database.record(&self.header(state.role, None)));
            ops.extend(self.shared.followed(database));
            touches.push((0, database.records));
        }
        let number =
            database.committer.push(Change { ops, touches, store: Some(self.clone()), done: None })?;
        (state.has_header, state.closed, state.counts) = (true, None, Some(counts));
        for ((addr, change), before) in changes.iter().zip(&before) {
            self.follow_digest(addr, before.as_ref().map(Option::as_ref), change.as_ref());
        }
        state.overlay.extend(changes.into_iter().map(|(addr, version)| (addr, (number, version))));
        drop(state);
        self.shared.reserve.wrote(written);
        Ok(())
    }

    fn header(&self, role: StoreRole, closed: Option<Closed>) -> Record {
        Record::Header(self.id, Header { module: self.module, role, closed })
    }

    /// Note that the changes up to a number are durable. Called by the committer.
    pub(super) fn settled(&self, number: u64) {
        let mut state = self.state.lock();
        let cache = &self.shared.cache;
        let kept = state.role != StoreRole::Dropped;
        state.overlay.retain(|addr, (of, version)| {
            if *of <= number && kept {
                cache.put(self.id.key(addr), version.take());
            }
            *of > number
        });
        let waiting = std::mem::take(&mut state.waiting);
        let (due, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(of, _)| *of <= number);
        state.waiting = waiting;
        drop(state);
        for (_, done) in due {
            done();
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.state.lock().counts.unwrap_or_default()
    }

    /// Return the number of the newest change of this scope that is not durable.
    fn unsettled(state: &State, scope: Scope<'_>) -> Option<u64> {
        let newest = |items: &mut dyn Iterator<Item = (&ItemAddr, &(u64, Option<Version>))>| {
            items.map(|(_, (number, _))| *number).max()
        };
        match scope {
            Scope::Nothing => None,
            _ if state.overlay.is_empty() => None,
            Scope::All => newest(&mut state.overlay.iter()),
            Scope::Key(key) => {
                let first = ItemAddr { key: key.to_vec(), sort: Vec::new() };
                newest(&mut state.overlay.range(first..).take_while(|(addr, _)| addr.key == key))
            }
        }
    }

    pub(super) fn is_settled(&self, scope: Scope<'_>) -> bool {
        Self::unsettled(&self.state.lock(), scope).is_none()
    }

    pub(super) fn when_settled(&self, scope: Scope<'_>, done: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        match Self::unsettled(&state, scope) {
            Some(number) => state.waiting.push((number, Box::new(done))),
            None => {
                drop(state);
                done();
            }
        }
    }

    /// Change the role. Return true if the store has a header, and with it items that a crash would leave.
    pub(super) fn set_role(&self, role: StoreRole) -> bool {
        let mut state = self.state.lock();
        state.role = role;
        state.has_header
    }

    /// Return the record of the header, for a change of roles. A stage without items gets its header here.
    ///
    /// The record reaches the committer only after this returns, and a change of the items may overtake it. So it never
    /// has the mark of an orderly close, which would then be wrong.
    pub(super) fn record(&self) -> Record {
        let mut state = self.state.lock();
        (state.has_header, state.closed) = (true, None);
        self.header(state.role, None)
    }

    /// Write the mark of an orderly close, and wait until it and all changes are durable.
    pub(super) async fn close(&self, writer: Writer) -> Result<(), StorageError> {
        let (database, _) = self.place()?;
        let (closed, durable) = tokio::sync::oneshot::channel();
        {
            let mut state = self.state.lock();
            let counts = state.counts.ok_or(StorageError::Closed)?;
            if state.role == StoreRole::Dropped || !state.has_header {
                return Ok(());
            }
            let closed_as = Some(Closed::new(writer, counts));
            let ops = vec![database.record(&self.header(state.role, closed_as))];
            let done: Done = Box::new(move || {
                let _ = closed.send(());
            });
            let touches = vec![(0, database.records)];
            database.committer.push(Change { ops, touches, store: None, done: Some(done) })?;
            state.closed = closed_as;
        }
        durable.await.map_err(|_| StorageError::Closed)
    }

    /// Return the module's keyspace, if the store was opened.
    pub(super) fn space(&self) -> Option<Arc<ItemSpace>> {
        self.place.get().map(|(_, space)| space.clone())
    }

    pub(super) fn refuses_writes(&self) -> Option<String> {
        self.shared.reserve.refuses()
    }

    pub(super) async fn ready(&self) {
        if let Some((database, _)) = self.place.get() {
            database.committer.ready().await;
        }
    }

    /// Return all items, in the calling thread.
    pub(super) fn snapshot(&self) -> Result<BTreeMap<ItemAddr, Version>, StorageError> {
        let mut all = BTreeMap::new();
        let overlay = self.overlay_within(&Bound::Unbounded, &Bound::Unbounded);
        if let Some((database, space)) = self.place.get() {
            let (from, to) = self.id.bounds();
            let (from, to) = (from.as_ref().map(|key| &key[..]), to.as_ref().map(|key| &key[..]));
            let read = database.engine.range(space.id, from, to, false, ReadLimit::NONE);
            for (key, value) in read.map_err(|error| self.shared.read_error(&error))? {
                let addr = keys::addr_of(&key).ok_or_else(|| self.unreadable(&key))?;
                all.insert(addr, keys::decode(&value).ok_or_else(|| self.unreadable(&key))?);
            }
        }
        for (addr, version) in overlay {
            match version {
                Some(version) => drop(all.insert(addr, version)),
                None => drop(all.remove(&addr)),
            }
        }
        Ok(all)
    }
}

/// Return true if a range ends before it starts; `BTreeMap::range` panics on it.
fn is_empty(from: &Bound<ItemAddr>, to: &Bound<ItemAddr>) -> bool {
    match (from, to) {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a >= b,
        _ => false,
    }
}
