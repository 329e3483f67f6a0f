//! The one wasmtime engine of a node, and the modules that it has compiled.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use annulus_core::contract::Partition;
use annulus_core::description::Description;
use annulus_core::ids::Digest;
use annulus_core::state::MAX_COMPONENT_BYTES;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};
use wasmtime::{Config, OptLevel};

use super::bindings::annulus::vnode::{context, log, storage};
use super::budget::half_of_memory;
use super::cache::Cache;
use super::compiler::{Compiler, Wanted, refused};
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
use annulus_storage::Items;

/// Longest description, in bytes of CBOR. It is part of the replicated state, which each member has in memory, and
/// which is rewritten with each change.
const MAX_DESCRIPTION_BYTES: usize = 64 << 10;

/// Address space reserved for the linear memory of an instance, in bytes. A memory that outgrows it is moved to a
/// new reservation, which again has this much room to grow. Reserving address space uses no memory. With
/// WebAssembly's usual 4 GiB, the 128 TiB of a process would suffice for some 30,000 instances only; this is far
/// less, and still enough that a memory is hardly ever moved.
const RESERVED_BYTES: usize = 64 << 20;
/// Guard region behind the reservation, in bytes. It lets compiled code skip the bounds check of a small
/// offset.
const GUARD_BYTES: usize = 64 << 10;
/// Stack on which wasmtime runs a guest, in bytes.
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

/// Storage of compiled components.
enum Cached {
    Nowhere,
    /// In a directory that outlives the process.
    OnDisk(Cache, Compiler),
    /// In memory, shared by all simulated nodes of the process.
    InMemory(Mutex<BTreeMap<Digest, Component>>),
}

/// A validated, compiled and described component, from which instances are made.
#[derive(Clone)]
pub struct Module {
    pub(super) pre: InstancePre<HostState>,
    pub(super) indices: Indices,
    pub(super) limits: Limits,
    pub(super) pace: Arc<Pace>,
    pub(super) room: Arc<Room>,
    /// SHA-256 of the component.
    pub digest: Digest,
    /// Answer of the component's `describe`.
    pub description: Arc<Description>,
}

impl Engine {
    /// Make an engine that compiles in this process and does not keep compiled code. Starts the epoch ticker,
    /// a thread that ends when the engine and its modules are dropped.
    ///
    /// # Errors
    /// If this machine cannot run wasmtime's code, or the thread cannot be started.
    pub fn new() -> wasmtime::Result<Self> {
        Self::with(None, |_| Cached::Nowhere)
    }

    /// Make the engine of a node. Compiled components are kept in the directory `cache` between starts.
    /// `program` is the executable that compiles them in a child process ([`crate::compile_component`]); if
    /// it is `None`, this process compiles. `memory`
    /// is the most linear memory of all instances together, in bytes; if it is `None`, half of the machine's.
    ///
    /// # Errors
    /// The same as for [`Engine::new`].
    pub fn of_a_node(
        cache: PathBuf,
        program: Option<PathBuf>,
        memory: Option<usize>,
    ) -> wasmtime::Result<Self> {
        Self::with(memory, |engine| Cached::OnDisk(Cache::new(cache, engine), Compiler::of(program)))
    }

    fn with(
        memory: Option<usize>,
        cached: impl FnOnce(&wasmtime::Engine) -> Cached,
    ) -> wasmtime::Result<Self> {
        let engine = configured(false)?;
        let weak = engine.weak();
        let ticker = Ticker::start(move || weak.upgrade().map(|engine| engine.increment_epoch()).is_some())?;
        let cache = cached(&engine);
        let inner = Inner::new(engine, cache, Pace::Epochs(ticker))?;
        let limit = RoomLimit::of_this_process(RESERVED_BYTES + STACK_BYTES);
        let room = Room::new(limit, memory.unwrap_or_else(half_of_memory));
        Ok(Self { inner: Arc::new(inner), room: Arc::new(room) })
    }

    /// Make an engine for a simulation. Guests yield, and end at their limit, after a number of instructions;
    /// their clocks and random numbers are those of the calling [`annulus_ground::Scope`]. All simulated
    /// engines of a process share one wasmtime engine, which compiles each component once. Each counts its
    /// own instances, without a limit.
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
        let room = Room::new(RoomLimit { instances: usize::MAX, by: LimitedBy::Nothing }, usize::MAX);
        Ok(Self { inner, room: Arc::new(room) })
    }

    /// Return the limit on the number of instances in this process.
    pub fn room(&self) -> RoomLimit {
        self.room.limit()
    }

    /// Return the linear memory of all instances together, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.room.memory().used()
    }

    /// Return the most linear memory that all instances together may have, in bytes.
    pub fn memory_limit(&self) -> usize {
        self.room.memory().limit()
    }

    /// Return the number of live instances.
    pub fn instances(&self) -> usize {
        self.room.live()
    }

    /// Validate, compile (off the async threads) and describe a component. Changes nothing on this node but
    /// the cache of compiled components.
    ///
    /// # Errors
    /// If the component has a defect, or this node has no room to check it.
    pub async fn prepare(
        &self,
        bytes: bytes::Bytes,
        limits: Limits,
    ) -> Result<Arc<Module>, InvalidComponent> {
        let this = self.clone();
        // Dropping this future, for example at the caller's deadline, ends the compilation too.
        let (_waiter, wanted) = Wanted::new();
        let compiled = annulus_ground::blocking(move || this.compile(&bytes, limits, &wanted)).await;
        let module = compiled
            .map_err(|error| InvalidComponent::NotAComponent(format!("the compiler failed: {error}")))??;
        self.describe(module).await.map(Arc::new)
    }

    /// Delete the compiled code of components for which `keep` returns false, and code compiled by an engine
    /// that is incompatible with this one. Blocks.
    pub fn retain_compiled(&self, keep: &dyn Fn(&Digest) -> bool) {
        if let Cached::OnDisk(cache, _) = &self.inner.cache {
            cache.retain(keep);
        }
    }

    /// Delete compiled code that was only partly written when the process ended. Must be called before
    /// anything is compiled. Blocks.
    pub fn remove_partial(&self) {
        if let Cached::OnDisk(cache, _) = &self.inner.cache {
            cache.remove_partial();
        }
    }

    fn compile(&self, bytes: &[u8], limits: Limits, wanted: &Wanted) -> Result<Module, InvalidComponent> {
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
                    let code = compiler.compile(engine, bytes, wanted)?;
                    let loaded = cache.take(engine, &digest, &code);
                    loaded.map_err(|error| InvalidComponent::NoRoom(format!("{error:#}")))?
                }
            },
            Cached::InMemory(kept) => {
                // Hold the lock while compiling, so that a second caller for the same component waits.
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

    /// Call `describe`, in an instance without items.
    async fn describe(&self, mut module: Module) -> Result<Module, InvalidComponent> {
        let exported = module.description.exported;
        let mut instance = Instance::bare(&module, trial_place()).await.map_err(|error| match error {
            GuestError::NoRoom(reason) => InvalidComponent::NoRoom(reason),
            error => InvalidComponent::DoesNotFit(error.to_string()),
        })?;
        let info =
            instance.describe().await.map_err(|error| InvalidComponent::BadDescription(error.to_string()))?;
        let description = description::parse(info, exported)?;
        let bytes = description.to_cbor().len();
        if bytes > MAX_DESCRIPTION_BYTES {
            return Err(InvalidComponent::BadDescription(format!(
                "it is {bytes} bytes; the limit is {MAX_DESCRIPTION_BYTES}: shorten the documentation of its commands"
            )));
        }
        module.description = Arc::new(description);
        Ok(module)
    }
}

/// Make a wasmtime engine with the settings of this crate. Compiled code depends on them.
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
        // Each of these two would cost one or two more mappings per instance: a guard region in front of the
        // memory, against compiler bugs, and a copy-on-write mapping of the component's data, which is only
        // some kilobytes to copy.
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
    /// Call `init` with the settings of a deploy, in a trial instance that belongs to no partition.
    ///
    /// # Errors
    /// If `init` refuses, with its reason, or fails.
    pub async fn check_init(&self, config: &[u8]) -> Result<(), InvalidComponent> {
        let failed = |error| match error {
            GuestError::NoRoom(reason) => InvalidComponent::NoRoom(reason),
            error => InvalidComponent::InitFailed(error.to_string()),
        };
        let items = Items::memory();
        Instance::start(self, trial_place(), items, config).await.map_err(failed)?;
        Ok(())
    }

    /// Return the limits of its vnodes.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Return the same component with other limits for its vnodes.
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits, ..self.clone() }
    }

    pub(super) fn engine(&self) -> &wasmtime::Engine {
        self.pre.engine()
    }
}

/// Return the location under which `describe` and a trial `init` run.
pub fn trial_place() -> VnodePlace {
    VnodePlace {
        module: "trial".into(),
        partition: Partition { id: 0, ring_size: 64 },
        write_format: 1,
        actor: annulus_ground::random(),
    }
}
