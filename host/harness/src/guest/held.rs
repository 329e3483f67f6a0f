//! The items of running guests, for comparisons between guests.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use annulus_ground::{Scope, ScopeId};
use annulus_storage::Storage;
use annulus_wasm::VnodePlace;
use parking_lot::{Mutex, RwLock};

use super::{Entry, Keeps};

/// Items by key.
pub type Contents = BTreeMap<Vec<u8>, Entry>;

/// The items of one guest, kept by itself or by the host.
pub(super) struct Held {
    life: ScopeId,
    at: VnodePlace,
    keeps: Keeps,
    /// Items that the guest keeps.
    pub(super) kept: Mutex<Contents>,
    stored: Arc<RwLock<dyn Storage>>,
}

impl Held {
    fn contents(&self) -> Contents {
        if self.keeps == Keeps::Guest {
            return self.kept.lock().clone();
        }
        let stored = self.stored.read();
        let all = stored.range(Bound::Unbounded, Bound::Unbounded);
        all.filter_map(|(addr, version)| Some((addr.key, Entry::decode(&version.value, &[1, 2]).ok()?)))
            .collect()
    }
}

/// All guests of a simulation.
#[derive(Default)]
pub(super) struct Shelf {
    guests: Mutex<Vec<Weak<Held>>>,
    stores: Mutex<Vec<Weak<RwLock<dyn Storage>>>>,
}

impl Shelf {
    /// Register a guest that starts.
    pub(super) fn add(&self, at: &VnodePlace, keeps: Keeps, stored: &Arc<RwLock<dyn Storage>>) -> Arc<Held> {
        let life = Scope::current().map_or_else(ScopeId::default, |scope| scope.id());
        let (at, kept, stored) = (at.clone(), Mutex::default(), stored.clone());
        let mut stores = self.stores.lock();
        stores.retain(|store| store.strong_count() > 0);
        let same =
            |store: &Weak<RwLock<dyn Storage>>| std::ptr::addr_eq(store.as_ptr(), Arc::as_ptr(&stored));
        if !stores.iter().any(same) {
            stores.push(Arc::downgrade(&stored));
        }
        let held = Arc::new(Held { life, at, keeps, kept, stored });
        let mut guests = self.guests.lock();
        guests.retain(|guest| guest.strong_count() > 0);
        guests.push(Arc::downgrade(&held));
        held
    }

    /// Return the number of vnodes with a host storage that have had a guest.
    pub(super) fn stores(&self) -> usize {
        self.stores.lock().iter().filter(|store| store.strong_count() > 0).count()
    }

    /// Return the items of a module's guests in a partition, in one incarnation of a node. There are several
    /// while one is about to replace another.
    pub(super) fn contents(&self, life: ScopeId, module: &str, partition: u32) -> Vec<Contents> {
        let guests: Vec<Arc<Held>> = self.guests.lock().iter().filter_map(Weak::upgrade).collect();
        let of = |held: &&Arc<Held>| {
            held.life == life && *held.at.module == *module && held.at.partition.id == partition
        };
        guests.iter().filter(of).map(|held| held.contents()).collect()
    }
}
