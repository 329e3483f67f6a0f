//! The test host's state for one vnode: its items, its log, and the permissions of the running call.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Dot, Level, Version};

pub(super) type Place = (Vec<u8>, Vec<u8>);

/// The items that the running call may access.
#[derive(Clone, Debug)]
pub(super) enum Reach {
    Nothing,
    Key(Vec<u8>),
    All,
}

#[derive(Debug)]
pub(super) struct World {
    pub items: BTreeMap<Place, Version>,
    pub logs: Vec<(Level, String)>,
    pub write_format: u32,
    pub now_ms: u64,
    pub request: u64,
    pub reach: Reach,
    pub may_write: bool,
    /// The reason why the running call is doomed, which is the first rule that it broke; `None` if it broke none.
    pub doomed: Option<String>,
    /// The writes of the running call.
    pub batch: BTreeMap<Place, Version>,
    dot: Dot,
}

impl World {
    pub fn new() -> Self {
        static ACTORS: AtomicU64 = AtomicU64::new(1);
        Self {
            items: BTreeMap::new(),
            logs: Vec::new(),
            write_format: 1,
            now_ms: 1_700_000_000_000,
            request: 0,
            reach: Reach::All,
            may_write: true,
            doomed: None,
            batch: BTreeMap::new(),
            dot: Dot { actor: ACTORS.fetch_add(1, Ordering::Relaxed), counter: 0 },
        }
    }

    pub fn next_dot(&mut self) -> Dot {
        self.dot.counter += 1;
        self.dot
    }

    pub fn doom(&mut self, reason: String) {
        self.doomed.get_or_insert(reason);
    }

    /// Return true if the running call may access the items of this key, or of all keys if `None`. Otherwise doom
    /// the call.
    pub fn reaches(&mut self, key: Option<&[u8]>) -> bool {
        let within = match (&self.reach, key) {
            (Reach::All, _) => true,
            (Reach::Key(own), Some(key)) => own == key,
            (Reach::Nothing, _) | (Reach::Key(_), None) => false,
        };
        if !within {
            let key = key.map_or("all keys".into(), String::from_utf8_lossy);
            self.doom(format!("the running command may not access storage of {key}"));
        }
        within
    }

    pub fn write(&mut self, key: &[u8], sort: &[u8], version: Version) {
        if !self.reaches(Some(key)) {
            return;
        }
        if !self.may_write {
            self.doom(
                "the call wrote an item, but it is `init` or its command is described as `read`".to_owned(),
            );
            return;
        }
        self.batch.insert((key.to_vec(), sort.to_vec()), version);
    }

    pub fn read(&self, place: &Place) -> Option<Version> {
        self.batch.get(place).or_else(|| self.items.get(place)).cloned()
    }

    /// End the running call: store its writes if it succeeded and is not doomed, and drop them otherwise. Return the
    /// reason if the call is doomed.
    pub fn end_call(&mut self, well: bool) -> Option<String> {
        let batch = std::mem::take(&mut self.batch);
        let doomed = self.doomed.take();
        if well && doomed.is_none() {
            self.items.extend(batch);
        }
        self.reach = Reach::All;
        self.may_write = true;
        doomed
    }
}

thread_local! {
    /// The world of the vnode whose call is running on this thread. Between calls, it is a world that belongs to the
    /// thread itself, in which a test can create items directly.
    static CURRENT: RefCell<World> = RefCell::new(World::new());
}

pub(super) fn current<R>(use_it: impl FnOnce(&mut World) -> R) -> R {
    CURRENT.with_borrow_mut(use_it)
}

/// Run `call` with `world` as the current world. The previous world is restored even if the call panics.
pub(super) fn within<R>(world: &RefCell<World>, call: impl FnOnce() -> R) -> R {
    struct Restore<'a>(&'a RefCell<World>);
    impl Drop for Restore<'_> {
        fn drop(&mut self) {
            current(|current| std::mem::swap(current, &mut self.0.borrow_mut()));
        }
    }
    current(|current| std::mem::swap(current, &mut world.borrow_mut()));
    let _restore = Restore(world);
    call()
}
