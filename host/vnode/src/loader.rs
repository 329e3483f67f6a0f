//! From a component's bytes to what vnodes run.

use std::sync::Arc;

use annulus_core::ids::Digest;
use bytes::Bytes;
use parking_lot::RwLock;

use super::guest::Code;
use super::native::{Native, NativeModule, NativePlace};
use super::watch::{Watched, Watcher};
use annulus_storage::Memory;
use annulus_wasm::{
    Description, Engine, GuestError, InvalidComponent, Limits, Module, RoomLimit, trial_place,
};

/// What is under way in a loader.
pub type Loading<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, InvalidComponent>> + Send + 'a>>;

/// What makes components into modules: the engine, or what a simulation has in its place.
pub trait Loader: Send + Sync + 'static {
    /// Validates and describes a component and makes it ready to run, with these limits for its vnodes.
    /// Nothing of the node is changed but what may be removed by [`Loader::retain_compiled`].
    fn prepare(&self, bytes: Bytes, limits: Limits) -> Loading<'_, Prepared>;

    /// How many instances this process has room for.
    fn room(&self) -> RoomLimit;

    /// How many there are.
    fn instances(&self) -> usize;

    /// Takes off the disk what was being written when the process ended: to be called before anything is
    /// prepared. Blocks.
    fn remove_partial(&self) {}

    /// Takes off the disk what was made of components of which `keep` says no. Blocks.
    fn retain_compiled(&self, _keep: &dyn Fn(&Digest) -> bool) {}
}

/// A component that is ready to run.
#[derive(Clone)]
pub struct Prepared {
    /// SHA-256 of the component.
    pub digest: Digest,
    /// What it says of itself.
    pub description: Arc<Description>,
    pub(super) code: Code,
    pub(super) watcher: Watched,
}

impl Prepared {
    /// One that runs as WebAssembly.
    pub fn wasm(module: Arc<Module>) -> Self {
        let (digest, description) = (module.digest, module.description.clone());
        Self { digest, description, code: Code::Wasm(module), watcher: None }
    }

    /// One that stands for code of this process.
    pub fn native(
        digest: Digest,
        description: Arc<Description>,
        module: Arc<dyn NativeModule>,
        limits: Limits,
    ) -> Self {
        Self { digest, description, code: Code::Native(module, limits), watcher: None }
    }

    /// The same, and somebody sees what its vnodes do.
    #[must_use]
    pub fn watched_by(self, watcher: Arc<dyn Watcher>) -> Self {
        Self { watcher: Some(watcher), ..self }
    }

    /// The same component for vnodes with other limits.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        let code = match &self.code {
            Code::Wasm(module) => Code::Wasm(Arc::new(module.with_limits(limits))),
            Code::Native(module, _) => Code::Native(module.clone(), limits),
        };
        Self { code, ..self.clone() }
    }

    /// Calls `init` with the settings that a deploy was given, in an instance of no partition. The answer is
    /// what `init` said, or how it failed.
    pub fn check_init<'a>(&'a self, config: &'a [u8]) -> Loading<'a, ()> {
        Box::pin(async move {
            match &self.code {
                Code::Wasm(module) => module.check_init(config).await,
                Code::Native(module, limits) => {
                    let items = Arc::new(RwLock::new(Memory::default()));
                    let place = NativePlace { vnode: trial_place(), config, items, limits: *limits };
                    match Native::start(&**module, place).await {
                        Ok(_) => Ok(()),
                        Err(GuestError::NoRoom(reason)) => Err(InvalidComponent::NoRoom(reason)),
                        Err(error) => Err(InvalidComponent::InitFailed(error.to_string())),
                    }
                }
            }
        })
    }
}

impl Loader for Engine {
    fn prepare(&self, bytes: Bytes, limits: Limits) -> Loading<'_, Prepared> {
        Box::pin(async move { Engine::prepare(self, bytes, limits).await.map(Prepared::wasm) })
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
