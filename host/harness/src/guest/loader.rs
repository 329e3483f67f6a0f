//! Prepares scripts, and passes everything else to an engine.

use std::sync::Arc;

use annulus_core::ids::Digest;
use annulus_ground::ScopeId;
use annulus_vnode::{Loader, Loading, Prepared, Watcher};
use annulus_wasm::{InvalidComponent, LimitedBy, Limits, RoomLimit};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::held::Shelf;
use super::module::{Module, Room};
use super::{Contents, Observer, Script};

/// The loader of nodes in a simulation. Clones share the limit of instances.
#[derive(Clone)]
pub struct Scripts {
    engine: Option<Arc<dyn Loader>>,
    watcher: Option<Arc<dyn Watcher>>,
    /// Upper limit of an instance's memory, in bytes.
    memory_bytes: usize,
    observer: Arc<dyn Observer>,
    room: Arc<Room>,
    shelf: Arc<Shelf>,
}

impl Scripts {
    /// Create a loader that knows only scripts and allows any number of instances.
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        let room = RoomLimit { instances: usize::MAX, by: LimitedBy::Nothing };
        Self {
            engine: None,
            watcher: None,
            memory_bytes: usize::MAX,
            observer,
            room: Arc::new(Room::new(room)),
            shelf: Arc::default(),
        }
    }

    /// Pass components that are not scripts to this loader.
    #[must_use]
    pub fn with_engine(self, engine: Arc<dyn Loader>) -> Self {
        Self { engine: Some(engine), ..self }
    }

    /// Let this watcher see the actions of vnodes with components that are not scripts.
    #[must_use]
    pub fn watched_by(self, watcher: Arc<dyn Watcher>) -> Self {
        Self { watcher: Some(watcher), ..self }
    }

    /// Limit the memory of every instance, of scripts and components, in addition to the module's own limit.
    #[must_use]
    pub fn with_memory(self, memory_bytes: usize) -> Self {
        Self { memory_bytes, ..self }
    }

    /// Limit the number of instances of scripts.
    #[must_use]
    pub fn with_room(self, limit: RoomLimit) -> Self {
        Self { room: Arc::new(Room::new(limit)), ..self }
    }

    /// Return the items of a module's scripted guests in a partition, in one incarnation of a node.
    pub fn contents(&self, life: ScopeId, module: &str, partition: u32) -> Vec<Contents> {
        self.shelf.contents(life, module, partition)
    }

    /// Return the number of vnodes with a host storage that have had a scripted guest.
    pub fn stores(&self) -> usize {
        self.shelf.stores()
    }
}

impl Loader for Scripts {
    fn prepare(&self, bytes: Bytes, limits: Limits) -> Loading<'_, Prepared> {
        let limits = Limits { memory_bytes: limits.memory_bytes.min(self.memory_bytes), ..limits };
        let invalid = InvalidComponent::NotAComponent;
        let Some(script) = Script::of_component(&bytes) else {
            return match &self.engine {
                Some(engine) => Box::pin(async move {
                    let prepared = engine.prepare(bytes, limits).await?;
                    Ok(match &self.watcher {
                        Some(watcher) => prepared.watched_by(watcher.clone()),
                        None => prepared,
                    })
                }),
                None => Box::pin(std::future::ready(Err(invalid("it is not a script".to_owned())))),
            };
        };
        Box::pin(async move {
            let digest = annulus_ground::blocking(move || Digest(Sha256::digest(&bytes).into()));
            let digest = digest.await.map_err(|error| invalid(error.to_string()))?;
            let script = script.map_err(invalid)?;
            let known = |format: &u32| matches!(format, 1 | 2);
            if !script.writes.iter().all(|format| known(format) && script.reads.contains(format)) {
                return Err(InvalidComponent::BadDescription(
                    "a script writes formats 1 and 2 and reads what it writes".to_owned(),
                ));
            }
            let description = Arc::new(script.description());
            let module =
                Module::new(Arc::new(script), self.observer.clone(), self.room.clone(), self.shelf.clone());
            Ok(Prepared::new(digest, description, Arc::new(module), limits))
        })
    }

    fn room(&self) -> RoomLimit {
        self.room.limit()
    }

    fn instances(&self) -> usize {
        self.room.live() + self.engine.as_ref().map_or(0, |engine| engine.instances())
    }

    fn remove_partial(&self) {
        if let Some(engine) = &self.engine {
            engine.remove_partial();
        }
    }

    fn retain_compiled(&self, keep: &dyn Fn(&Digest) -> bool) {
        if let Some(engine) = &self.engine {
            engine.retain_compiled(keep);
        }
    }
}
