//! The step from the bytes of a component to a program that vnodes run.

use std::sync::Arc;

use annulus_core::description::Description;
use annulus_core::ids::Digest;
use bytes::Bytes;

use super::component::Component;
use super::runtime::{self, InstanceConfig, Program};
use super::watch::{Watched, Watcher};
use annulus_storage::Items;
use annulus_wasm::{Engine, GuestError, InvalidComponent, Limits, RoomLimit, trial_place};

/// An operation of a loader in progress.
pub type Loading<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, InvalidComponent>> + Send + 'a>>;

/// Turns components into programs: the engine, or its replacement in a simulation.
pub trait Loader: Send + Sync + 'static {
    /// Validate, compile and describe a component, for vnodes with these limits. On disk this only adds files
    /// that [`Loader::retain_compiled`] may remove.
    fn prepare(&self, bytes: Bytes, limits: Limits) -> Loading<'_, Prepared>;

    /// Return the maximum number of instances in this process.
    fn room(&self) -> RoomLimit;

    /// Return the number of instances.
    fn instances(&self) -> usize;

    /// Remove files that a previous process did not finish writing. Call it before anything is prepared. Blocks.
    fn remove_partial(&self) {}

    /// Remove the files of components for which `keep` returns false. Blocks.
    fn retain_compiled(&self, _keep: &dyn Fn(&Digest) -> bool) {}
}

/// A component that is ready to run.
#[derive(Clone)]
pub struct Prepared {
    /// SHA-256 of the component.
    pub digest: Digest,
    /// The component's own description.
    pub description: Arc<Description>,
    pub(super) program: Arc<dyn Program>,
    pub(super) limits: Limits,
    pub(super) watcher: Watched,
}

impl Prepared {
    /// Create a prepared component from its program.
    pub fn new(
        digest: Digest,
        description: Arc<Description>,
        program: Arc<dyn Program>,
        limits: Limits,
    ) -> Self {
        Self { digest, description, program, limits, watcher: None }
    }

    /// Report the commands of its vnodes to a watcher.
    #[must_use]
    pub fn watched_by(self, watcher: Arc<dyn Watcher>) -> Self {
        Self { watcher: Some(watcher), ..self }
    }

    /// Return the same component for vnodes with other limits.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits, ..self.clone() }
    }

    /// Call `init` with the settings of a deploy, in an instance of no partition.
    ///
    /// # Errors
    /// If `init` refuses, or the instance fails.
    pub fn check_init<'a>(&'a self, settings: &'a [u8]) -> Loading<'a, ()> {
        Box::pin(async move {
            let items = Items::memory();
            let config = InstanceConfig { vnode: trial_place(), settings, items, limits: self.limits };
            match runtime::start(&*self.program, config).await {
                Ok(_) => Ok(()),
                Err(GuestError::NoRoom(reason)) => Err(InvalidComponent::NoRoom(reason)),
                Err(error) => Err(InvalidComponent::InitFailed(error.to_string())),
            }
        })
    }
}

impl Loader for Engine {
    fn prepare(&self, bytes: Bytes, limits: Limits) -> Loading<'_, Prepared> {
        Box::pin(async move {
            let module = Engine::prepare(self, bytes, limits).await?;
            let (digest, description) = (module.digest, module.description.clone());
            Ok(Prepared::new(digest, description, Arc::new(Component(module)), limits))
        })
    }

    fn room(&self) -> RoomLimit {
        Engine::room(self)
    }

    fn instances(&self) -> usize {
        Engine::instances(self)
    }

    fn remove_partial(&self) {
        Engine::remove_partial(self);
    }

    fn retain_compiled(&self, keep: &dyn Fn(&Digest) -> bool) {
        Engine::retain_compiled(self, keep);
    }
}
