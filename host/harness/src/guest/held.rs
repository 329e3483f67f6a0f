//! The items of running guests, for comparisons between guests.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use annulus_core::item::Item;
use annulus_ground::{Scope, ScopeId};
use annulus_storage::{Items, WeakItems};
use annulus_wasm::VnodePlace;
use parking_lot::Mutex;

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
    stored: Items,
}

impl Held {
    fn contents(&self) -> Contents {
        if self.keeps == Keeps::Guest {
            return self.kept.lock().clone();
        }
        let stored = self.stored.snapshot().unwrap_or_default();
        let entry = |item: Item| Some((item.key, Entry::decode(&item.value, &[1, 2]).ok()?));
        stored.into_iter().filter_map(entry).collect()
    }
}

/// All guests of a simulation.
#[derive(Default)]
pub(super) struct Shelf {
    guests: Mutex<Vec<Weak<Held>>>,
    stores: Mutex<Vec<WeakItems>>,
}

impl Shelf {
    /// Register a guest that starts.
    pub(super) fn add(&self, at: &VnodePlace, keeps: Keeps, stored: &Items) -> Arc<Held> {
        let life = Scope::current().map_or_else(ScopeId::default, |scope| scope.id());
        let (at, kept, stored) = (at.clone(), Mutex::default(), stored.clone());
        let mut stores = self.stores.lock();
        stores.retain(WeakItems::is_held);
        if !stores.iter().any(|store| store.is_of(&stored)) {
            stores.push(stored.downgrade());
        }
        let held = Arc::new(Held { life, at, keeps, kept, stored });
        let mut guests = self.guests.lock();
        guests.retain(|guest| guest.strong_count() > 0);
        guests.push(Arc::downgrade(&held));
        held
    }

    /// Return the number of vnodes with a host storage that have had a guest.
    pub(super) fn stores(&self) -> usize {
        self.stores.lock().iter().filter(|store| store.is_held()).count()
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
