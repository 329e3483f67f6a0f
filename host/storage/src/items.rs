//! The items of one vnode, whichever engine keeps them.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use annulus_core::item::{Budget, Item, ItemAddr, Page, RangeDigest, Version};
use parking_lot::RwLock;

use super::batch::Batch;
use super::durable::Durable;
use super::error::StorageError;
use super::memory::Memory;
use super::page::{Selection, page};

/// The items of one vnode, ordered by address. Clones share them.
///
/// A vnode makes one change at a time, and its reads see every change that it has made. A change may be visible before
/// it is durable; a reply based on it must wait (R11): see [`Items::when_settled`].
#[derive(Clone, Debug)]
pub struct Items(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Memory(Arc<RwLock<Memory>>),
    Durable(Arc<Held>),
}

/// A store on disk in use. The node's registry keeps the store itself, so this is what a vnode's end lets go of.
#[derive(Debug)]
struct Held(Arc<Durable>);

impl Deref for Held {
    type Target = Arc<Durable>;

    fn deref(&self) -> &Arc<Durable> {
        &self.0
    }
}

/// A reference to [`Items`] that does not keep them, to see whether a vnode has ended.
#[derive(Clone, Debug)]
pub struct WeakItems(WeakKind);

#[derive(Clone, Debug)]
enum WeakKind {
    Memory(Weak<RwLock<Memory>>),
    Durable(Weak<Held>),
}

impl WeakItems {
    /// Return true while the items are in use.
    pub fn is_held(&self) -> bool {
        match &self.0 {
            WeakKind::Memory(memory) => memory.strong_count() > 0,
            WeakKind::Durable(store) => store.strong_count() > 0,
        }
    }

    /// Return true if it refers to these items.
    pub fn is_of(&self, items: &Items) -> bool {
        match (&self.0, &items.0) {
            (WeakKind::Memory(one), Kind::Memory(other)) => std::ptr::eq(one.as_ptr(), Arc::as_ptr(other)),
            (WeakKind::Durable(one), Kind::Durable(other)) => std::ptr::eq(one.as_ptr(), Arc::as_ptr(other)),
            _ => false,
        }
    }
}

/// The identity of a vnode among those that have written its items (R8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Drawn at random whenever a store opens that was not closed in order, so that no dot is assigned twice.
    pub actor: u64,
    /// Number of dots assigned so far.
    pub dots: u64,
}

/// The size of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of items, tombstones included.
    pub items: u64,
    /// Bytes of key, sort and value of all items.
    pub bytes: u64,
}

/// The items that a call may have read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// None.
    Nothing,
    /// Those of one routing key.
    Key(&'a [u8]),
    /// Any.
    All,
}

impl Items {
    /// Create an empty store in memory. Its items end with the process.
    pub fn memory() -> Self {
        Self(Kind::Memory(Arc::default()))
    }

    pub(super) fn durable(store: Arc<Durable>) -> Self {
        Self(Kind::Durable(Arc::new(Held(store))))
    }

    /// Return the store on disk, if the items are there.
    pub(super) fn on_disk(&self) -> Option<&Arc<Durable>> {
        match &self.0 {
            Kind::Memory(_) => None,
            Kind::Durable(store) => Some(store),
        }
    }

    /// Return a reference that does not keep the items.
    pub fn downgrade(&self) -> WeakItems {
        match &self.0 {
            Kind::Memory(memory) => WeakItems(WeakKind::Memory(Arc::downgrade(memory))),
            Kind::Durable(store) => WeakItems(WeakKind::Durable(Arc::downgrade(store))),
        }
    }

    /// Return true if both are the same store.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Kind::Memory(one), Kind::Memory(other)) => Arc::ptr_eq(one, other),
            (Kind::Durable(one), Kind::Durable(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Prepare the store for its vnode. It must be called before everything else, and may be called again.
    ///
    /// Return the writer that closed the store in order, whose dots the vnode continues; `None` if the vnode must take
    /// a new actor.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn open(&self) -> Result<Option<Writer>, StorageError> {
        match &self.0 {
            Kind::Memory(_) => Ok(None),
            Kind::Durable(store) => store.open().await,
        }
    }

    /// Close the store in order, so that its next vnode can continue the dots of `writer`. All changes are durable when
    /// this returns.
    ///
    /// # Errors
    /// The next vnode takes a new actor.
    pub async fn close(&self, writer: Writer) -> Result<(), StorageError> {
        match &self.0 {
            Kind::Memory(_) => Ok(()),
            Kind::Durable(store) => store.close(writer).await,
        }
    }

    /// Return the version at an address.
    ///
    /// # Errors
    /// The store cannot be read, here and below.
    pub async fn get(&self, addr: &ItemAddr) -> Result<Option<Version>, StorageError> {
        match &self.0 {
            Kind::Memory(memory) => Ok(memory.read().get(addr).cloned()),
            Kind::Durable(store) => store.get(addr).await,
        }
    }

    /// Return a page of the selected items, in order of their addresses, as a call with the writes in `over` sees them.
    /// `after` is the token of the previous page.
    pub async fn page(
        &self,
        over: &Batch,
        selection: &Selection,
        after: Option<&[u8]>,
        limit: Budget,
    ) -> Result<Page, StorageError> {
        match &self.0 {
            Kind::Memory(memory) => {
                let memory = memory.read();
                let (from, to) = selection.bounds(after);
                let below = memory.range(from.clone(), to.clone());
                let seen = over.scan(below, from, to, selection.reverse);
                Ok(page(Page::default(), seen, selection, limit))
            }
            Kind::Durable(store) => store.page(over, selection, after, limit).await,
        }
    }

    /// Return the digest of the items of a key, tombstones included, if it takes no read of the disk and all of the items
    /// are durable. Any thread may ask.
    pub fn digest_in_memory(&self, key: &[u8]) -> Option<RangeDigest> {
        match &self.0 {
            Kind::Memory(memory) => Some(memory.read().digest(key)),
            Kind::Durable(store) => store.known_digest(key),
        }
    }

    /// Return the digest of the items of a key, tombstones included, as the vnode sees them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn digest(&self, key: &[u8]) -> Result<RangeDigest, StorageError> {
        match &self.0 {
            Kind::Memory(memory) => Ok(memory.read().digest(key)),
            Kind::Durable(store) => store.digest(key).await,
        }
    }

    /// Apply changes as a whole, after all earlier ones. `None` removes the item. Reads see them when this returns; they
    /// may be durable later.
    ///
    /// # Errors
    /// None of the changes is applied.
    pub async fn apply(&self, changes: Vec<(ItemAddr, Option<Version>)>) -> Result<(), StorageError> {
        match &self.0 {
            Kind::Memory(memory) => {
                memory.write().apply(changes);
                Ok(())
            }
            Kind::Durable(store) => store.apply(changes).await,
        }
    }

    /// Return the number and the size of the items.
    pub fn counts(&self) -> Counts {
        match &self.0 {
            Kind::Memory(memory) => memory.read().counts(),
            Kind::Durable(store) => store.counts(),
        }
    }

    /// Return true if everything that a call with this scope may have seen is durable, so that its reply may leave.
    pub fn is_settled(&self, scope: Scope<'_>) -> bool {
        match &self.0 {
            Kind::Memory(_) => true,
            Kind::Durable(store) => store.is_settled(scope),
        }
    }

    /// Call `done` once everything that a call with this scope may have seen is durable. It is never called if that
    /// fails, because the process ends then.
    pub fn when_settled(&self, scope: Scope<'_>, done: impl FnOnce() + Send + 'static) {
        match &self.0 {
            Kind::Memory(_) => done(),
            Kind::Durable(store) => store.when_settled(scope, done),
        }
    }

    /// Return the reason why the store takes no writes for now: the disk is nearly full. Reads, and removals, go on.
    pub fn refuses_writes(&self) -> Option<String> {
        match &self.0 {
            Kind::Memory(_) => None,
            Kind::Durable(store) => store.refuses_writes(),
        }
    }

    /// Wait while so many changes wait for the disk that the vnode must not run another command.
    pub async fn ready(&self) {
        match &self.0 {
            Kind::Memory(_) => {}
            Kind::Durable(store) => store.ready().await,
        }
    }

    /// Return all items in the calling thread, which may block, for the comparisons of a simulation.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn snapshot(&self) -> Result<Vec<Item>, StorageError> {
        match &self.0 {
            Kind::Memory(memory) => {
                let memory = memory.read();
                let all = memory.range(std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
                Ok(all.map(|(addr, version)| Item::new(addr.clone(), version.clone())).collect())
            }
            Kind::Durable(store) => {
                Ok(store.snapshot()?.into_iter().map(|(addr, version)| Item::new(addr, version)).collect())
            }
        }
    }
}
