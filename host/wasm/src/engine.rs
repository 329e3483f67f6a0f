//! The one wasmtime engine of a node, and the modules that it compiled.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use annulus_core::contract::Partition;
use annulus_core::description::Description;
use annulus_core::ids::Digest;
use parking_lot::{Mutex, RwLock};
use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};
use wasmtime::{Config, OptLevel};

use super::bindings::annulus::vnode::{context, log, storage};
use super::cache::Cache;
use super::compiler::{Compiler, refused};
use super::description;
use super::error::{GuestError, InvalidComponent};
use super::exports::{self, Indices};
use super::host::{HostState, VnodePlace};
use super::inspect;
use super::instance::Instance;
use super::limits::Limits;
use super::memory;
use super::pace::Pace;
use super::room::{LimitedBy, Room, RoomLimit};
use super::ticker::Ticker;
use annulus_storage::Memory;

/// Longest component, in bytes: compiling is the costliest thing that a caller can ask for.
/// Interpreted languages make components of 12 to 18 MB.
const MAX_COMPONENT_BYTES: usize = 64 << 20;

/// Address space that an instance's memory has to grow into before it is moved, and by how much more it is
/// moved then. Address space costs nothing but itself: far less than WebAssembly's 4 GiB, of which 128 TiB
/// hold only some 30,000, and enough that a memory is hardly ever moved.
const RESERVED_BYTES: usize = 64 << 20;
/// Behind that: what spares compiled code the check of a small offset.
const GUARD_BYTES: usize = 64 << 10;
/// Wasmtime's own stacks for guests.
const STACK_BYTES: usize = 2 << 20;

/// Compiles components. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
    room: Arc<Room>,
}

struct Inner {
    engine: wasmtime::Engine,
    linker: Linker<HostState>,
    cache: Cached,
    pace: Arc<Pace>,
}

/// Where compiled components are kept.
enum Cached {
    Nowhere,
    /// Between starts.
    OnDisk(Cache, Compiler),
    /// For all nodes of all simulations of the process.
    InMemory(Mutex<BTreeMap<Digest, Component>>),
}

/// A validated, compiled, described component: what instances are made of.
#[derive(Clone)]
pub struct Module {
    pub(super) pre: InstancePre<HostState>,
    pub(super) indices: Indices,
    pub(super) limits: Limits,
    pub(super) pace: Arc<Pace>,
    pub(super) room: Arc<Room>,
    /// SHA-256 of the component.
    pub digest: Digest,
    /// What it says of itself.
    pub description: Arc<Description>,
}

impl Engine {
    /// Makes an engine and starts its epoch ticker, a thread that ends with the engine and its modules. It
    /// compiles in this process, and keeps nothing of that.
    ///
    /// # Errors
    /// If this machine cannot run wasmtime's code, or no thread can be started.
    pub fn new() -> wasmtime::Result<Self> {
        Self::with(|_| Cached::Nowhere)
    }

    /// The same, for a node: compiled components are kept in a directory between starts. `program` is the one that
    /// compiles them, in a child process ([`crate::compile_component`]); without, this process does.
    ///
    /// # Errors
    /// As above.
    pub fn of_a_node(cache: PathBuf, program: Option<PathBuf>) -> wasmtime::Result<Self> {
        Self::with(|engine| Cached::OnDisk(Cache::new(cache, engine), Compiler::of(program)))
    }

    fn with(cached: impl FnOnce(&wasmtime::Engine) -> Cached) -> wasmtime::Result<Self> {
        let engine = configured(false)?;
        let weak = engine.weak();
        let ticker = Ticker::start(move || weak.upgrade().map(|engine| engine.increment_epoch()).is_some())?;
        let cache = cached(&engine);
        let inner = Inner::new(engine, cache, Pace::Epochs(ticker))?;
        let room = Room::new(RoomLimit::of_this_process(RESERVED_BYTES + STACK_BYTES));
        Ok(Self { inner: Arc::new(inner), room: Arc::new(room) })
    }

    /// An engine for a simulation: guests give way and end at their limit after so many instructions, and their
    /// clocks and random numbers are those of the [`annulus_ground::Scope`] that calls them. All of a process are
    /// one, which compiles each component once; only instances are counted apart, and there may be any number.
    ///
    /// # Errors
    /// If this machine cannot run wasmtime's code.
    pub fn simulated() -> wasmtime::Result<Self> {
        static SHARED: Mutex<Option<Arc<Inner>>> = Mutex::new(None);
        let mut shared = SHARED.lock();
        let inner = match &*shared {
            Some(inner) => inner.clone(),
            None => {
                let kept = Cached::InMemory(Mutex::default());
                let inner = Arc::new(Inner::new(configured(true)?, kept, Pace::Fuel)?);
                shared.insert(inner).clone()
            }
        };
        let room = Room::new(RoomLimit { instances: usize::MAX, by: LimitedBy::Nothing });
        Ok(Self { inner, room: Arc::new(room) })
    }

    /// How many instances this process has room for.
    pub fn room(&self) -> RoomLimit {
        self.room.limit()
    }

    /// How many there are.
    pub fn instances(&self) -> usize {
        self.room.live()
    }

    /// Validates, compiles (off the async threads) and describes a component. Nothing of the
    /// node is changed but the cache of compiled components.
    ///
    /// # Errors
    /// Says what is wrong with the component.
    pub async fn prepare(
        &self,
        bytes: bytes::Bytes,
        limits: Limits,
    ) -> Result<Arc<Module>, InvalidComponent> {
        let this = self.clone();
        let compiled = annulus_ground::blocking(move || this.compile(&bytes, limits)).await;
        let module = compiled
            .map_err(|error| InvalidComponent::NotAComponent(format!("the compiler failed: {error}")))??;
        self.describe(module).await.map(Arc::new)
    }

    /// Takes compiled code off the disk of components of which `keep` says no, and code that this engine
    /// does not understand. Blocks.
    pub fn retain_compiled(&self, keep: &dyn Fn(&Digest) -> bool) {
        if let Cached::OnDisk(cache, _) = &self.inner.cache {
            cache.retain(keep);
        }
    }

    /// Takes compiled code off the disk that was being written when the process ended: to be called
    /// before anything is compiled. Blocks.
    pub fn remove_partial(&self) {
        if let Cached::OnDisk(cache, _) = &self.inner.cache {
            cache.remove_partial();
        }
    }

    fn compile(&self, bytes: &[u8], limits: Limits) -> Result<Module, InvalidComponent> {
        if bytes.len() > MAX_COMPONENT_BYTES {
            return Err(InvalidComponent::TooLarge { bytes: bytes.len(), limit: MAX_COMPONENT_BYTES });
        }
        let digest = Digest(Sha256::digest(bytes).into());
        let engine = &self.inner.engine;
        let component = match &self.inner.cache {
            Cached::Nowhere => Inner::build(engine, bytes)?,
            Cached::OnDisk(cache, compiler) => match cache.load(engine, &digest) {
                Some(component) => component,
                None => {
                    inspect::check(bytes)?;
                    let code = compiler.compile(engine, bytes)?;
                    let loaded = cache.take(engine, &digest, &code);
                    loaded.map_err(|error| InvalidComponent::NoRoom(format!("{error:#}")))?
                }
            },
            Cached::InMemory(kept) => {
                // Whoever wants the same one meanwhile waits for it.
                let mut kept = kept.lock();
                match kept.get(&digest) {
                    Some(component) => component.clone(),
                    None => kept.entry(digest).or_insert(Inner::build(engine, bytes)?).clone(),
                }
            }
        };
        let exported = exports::survey(engine, &component)?;
        let pre = self
            .inner
            .linker
            .instantiate_pre(&component)
            .map_err(|error| InvalidComponent::DoesNotFit(format!("{error:#}")))?;
        let indices = Indices::find(&pre, &exported)?;
        let description = Arc::new(Description { exported, ..Description::unreadable("") });
        let (pace, room) = (self.inner.pace.clone(), self.room.clone());
        Ok(Module { pre, indices, limits, pace, room, digest, description })
    }

    /// Asks `describe`, in an instance without items.
    async fn describe(&self, mut module: Module) -> Result<Module, InvalidComponent> {
        let exported = module.description.exported;
        let mut instance = Instance::bare(&module, trial_place()).await.map_err(|error| match error {
            GuestError::NoRoom(reason) => InvalidComponent::NoRoom(reason),
            error => InvalidComponent::DoesNotFit(error.to_string()),
        })?;
        let info =
            instance.describe().await.map_err(|error| InvalidComponent::BadDescription(error.to_string()))?;
        module.description = Arc::new(description::parse(info, exported)?);
        Ok(module)
    }
}

/// An engine of wasmtime's with our settings, on which compiled code depends.
pub(super) fn configured(by_fuel: bool) -> wasmtime::Result<wasmtime::Engine> {
    let mut config = Config::new();
    Pace::configure(by_fuel, &mut config);
    config
        .concurrency_support(false)
        .wasm_component_model(true)
        .cranelift_opt_level(OptLevel::Speed)
        .memory_reservation(RESERVED_BYTES as u64)
        .memory_reservation_for_growth(RESERVED_BYTES as u64)
        .memory_guard_size(GUARD_BYTES as u64)
        // Each would be one or two mappings more for each instance: a guard in front of the memory, for
        // faults of the compiler's, and a mapping of the component's data, which is some kilobytes to copy.
        .guard_before_linear_memory(false)
        .memory_init_cow(false)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(20));
    wasmtime::Engine::new(&config)
}

impl Inner {
    fn new(engine: wasmtime::Engine, cache: Cached, pace: Pace) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        context::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
        log::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
        storage::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
        Ok(Self { engine, linker, cache, pace: Arc::new(pace) })
    }

    fn build(engine: &wasmtime::Engine, bytes: &[u8]) -> Result<Component, InvalidComponent> {
        inspect::check(bytes)?;
        let component = Component::from_binary(engine, bytes).map_err(refused)?;
        memory::give_back();
        Ok(component)
    }
}

impl Module {
    /// Calls `init` with the settings that a deploy was given, in an instance of no partition.
    ///
    /// # Errors
    /// What `init` said, or how it failed.
    pub async fn check_init(&self, config: &[u8]) -> Result<(), InvalidComponent> {
        let failed = |error| match error {
            GuestError::NoRoom(reason) => InvalidComponent::NoRoom(reason),
            error => InvalidComponent::InitFailed(error.to_string()),
        };
        let items = Arc::new(RwLock::new(Memory::default()));
        Instance::start(self, trial_place(), items, config).await.map_err(failed)?;
        Ok(())
    }

    /// Return the limits of its vnodes.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The same component for vnodes with other limits.
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits, ..self.clone() }
    }

    pub(super) fn engine(&self) -> &wasmtime::Engine {
        self.pre.engine()
    }
}

/// Where `describe` and a trial `init` run.
pub fn trial_place() -> VnodePlace {
    VnodePlace {
        module: "trial".into(),
        partition: Partition { id: 0, ring_size: 64 },
        write_format: 1,
        actor: annulus_ground::random(),
    }
}
