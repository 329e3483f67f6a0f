//! The imports of a guest: context, log and storage, for the call that is running.
//!
//! No import fails towards the guest. A violation of the contract dooms the call (see the contract's `storage`):
//! further writes have no effect, and [`super::Instance`] discards the reply.

use std::sync::Arc;

use annulus_core::contract::Partition;
use annulus_core::description::{CommandInfo, Effect, Route};
use annulus_core::item::{ItemAddr, Version};
use wasmtime::ResourceLimiter;
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use super::bindings::annulus::vnode::{context, log, storage, types};
use super::error::Doom;
use super::guest_log::GuestLog;
use super::limits::Limits;
use super::meter::Yielded;
use super::pace::Pace;
use super::room::Room;
use super::simulated;
use super::stderr::Stderr;
use annulus_storage::{Batch, Items, Selection, StorageError};

/// Maximum number of elements of all tables of an instance together.
const MAX_TABLE_ELEMENTS: usize = 200_000;
/// Maximum number of core instances, of tables and of memories of a component's instance. Components written in Rust
/// have five core instances, two tables and one memory; interpreters, which load libraries, have some dozens of core
/// instances.
const MAX_CORE_INSTANCES: usize = 256;
const MAX_TABLES: usize = 64;
const MAX_MEMORIES: usize = 16;
/// Maximum number of random bytes that one call of WASI returns: the host generates them at once, without a yield.
const MAX_RANDOM_BYTES: u64 = 64 << 10;
/// Maximum number of items of one page of `scan`, even if the guest asks for more: a scan does not yield, and the
/// page is copied.
const MAX_SCAN_ITEMS: u32 = 4096;
const MAX_SCAN_BYTES: u32 = 1 << 20;

/// The limit that denied a growth of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MemoryDenied {
    /// The limit of one instance.
    #[error("it asked for more memory than its limit of {} MiB", .0 >> 20)]
    ByInstance(usize),
    /// The common limit of all instances of the node.
    #[error("it asked for memory when the guests of this node had used up their {} MiB (`start --guest-memory`)", .0 >> 20)]
    ByNode(usize),
}

/// The identity and the partition of a vnode.
#[derive(Clone, Debug)]
pub struct VnodePlace {
    /// Name of the module, for log lines.
    pub module: Arc<str>,
    /// The partition.
    pub partition: Partition,
    /// Format in which the guest writes its items (R22).
    pub write_format: u32,
    /// The identity of the vnode in the dots of its writes (R8), random unless the vnode continues a store that was
    /// closed in order.
    pub actor: u64,
}

/// The items that the running call may access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallScope {
    /// The items of this key.
    Key {
        /// The routing key.
        key: Vec<u8>,
        /// True if the command may write.
        write: bool,
    },
    /// No items.
    Nothing,
    /// All items.
    All {
        /// True if the call may write.
        write: bool,
    },
    /// All items, for reads only, in the callback with this name.
    Told(&'static str),
    /// No import may be called.
    Pure,
}

impl CallScope {
    /// Return the scope of a command. Only its description decides, not the key that a caller sends: a command that
    /// runs anywhere runs in a partition that need not be the one of the key.
    pub fn of_command(info: &CommandInfo, key: Option<&[u8]>) -> Self {
        let write = info.effect != Effect::Read;
        match (&info.route, key) {
            (Route::ByParam(_), Some(key)) => Self::Key { key: key.to_vec(), write },
            (Route::ByParam(_), None) | (Route::Anywhere, _) => Self::Nothing,
            (Route::Everywhere, _) => Self::All { write },
        }
    }
}

/// The host's state of one store.
pub(super) struct HostState {
    wasi: WasiCtx,
    table: ResourceTable,
    pub(super) stderr: Stderr,
    pub(super) limits: Limits,
    pub(super) pace: Arc<Pace>,
    pub(super) yielded: Yielded,
    place: VnodePlace,
    items: Items,
    pub(super) call: Call,
    /// Number of dots that this vnode has assigned.
    dots: u64,
    /// The limit that denied a growth of memory during the running call.
    pub(super) memory_denied: Option<MemoryDenied>,
    /// Size of all linear memories of the instance, in bytes.
    memory_bytes: usize,
    /// The last growth that was allowed, in bytes; subtracted again if the growth then fails.
    growing_by: usize,
    /// Number of elements of all tables of the instance.
    table_elements: usize,
    /// The node's room for instances; its used memory includes `memory_bytes`.
    pub(super) room: Arc<Room>,
    log: GuestLog,
}

/// The state of the running call.
pub(super) struct Call {
    pub(super) scope: CallScope,
    pub(super) request: (u64, u64),
    pub(super) now_ms: u64,
    pub(super) batch: Batch,
    pub(super) doom: Option<Doom>,
}

impl HostState {
    pub(super) fn new(
        place: VnodePlace,
        limits: Limits,
        pace: Arc<Pace>,
        room: Arc<Room>,
        items: Items,
    ) -> Self {
        let stderr = Stderr::default();
        // The guest gets no files, no sockets, no environment and no arguments.
        let mut wasi = WasiCtx::builder();
        wasi.stderr(stderr.clone()).allow_tcp(false).allow_udp(false).max_random_size(MAX_RANDOM_BYTES);
        if matches!(*pace, Pace::Fuel) {
            simulated::give(&mut wasi);
        }
        let wasi = wasi.build();
        let call = Call {
            scope: CallScope::Nothing,
            request: (0, 0),
            now_ms: 0,
            batch: Batch::default(),
            doom: None,
        };
        Self {
            wasi,
            table: ResourceTable::new(),
            stderr,
            limits,
            pace,
            yielded: Yielded::default(),
            place,
            items,
            call,
            dots: 0,
            memory_denied: None,
            memory_bytes: 0,
            growing_by: 0,
            table_elements: 0,
            room,
            log: GuestLog::default(),
        }
    }

    /// Return the size of all linear memories in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    pub(super) fn place(&self) -> &VnodePlace {
        &self.place
    }

    /// Return the number of dots assigned, after which a new instance of the vnode continues.
    pub(super) fn dots(&self) -> u64 {
        self.dots
    }

    pub(super) fn set_dots(&mut self, dots: u64) {
        self.dots = dots;
    }

    fn doom(&mut self, doom: Doom) {
        self.call.doom.get_or_insert(doom);
    }

    /// Check that the call may use imports.
    fn import(&mut self, name: &'static str) {
        if self.call.scope == CallScope::Pure {
            self.doom(Doom::ImpureMerge(name));
        }
    }

    /// Check that the call may read items of `key`, or of all keys.
    fn may_read(&mut self, key: Option<&[u8]>) -> bool {
        let doom = match (&self.call.scope, key) {
            (CallScope::All { .. } | CallScope::Told(_), _) => return true,
            (CallScope::Key { key: own, .. }, Some(key)) if own == key => return true,
            (CallScope::Key { .. }, _) => Doom::WrongKey,
            (CallScope::Nothing, _) => Doom::NoItems,
            (CallScope::Pure, _) => Doom::ImpureMerge("storage"),
        };
        self.doom(doom);
        false
    }

    async fn write(&mut self, addr: ItemAddr, version: Version) {
        if !self.may_read(Some(&addr.key)) {
            return;
        }
        if let CallScope::Key { write: false, .. } | CallScope::All { write: false } = self.call.scope {
            return self.doom(Doom::WriteInRead);
        }
        if let CallScope::Told(callback) = self.call.scope {
            return self.doom(Doom::WriteInCallback(callback));
        }
        let bytes = addr.key.len() + addr.sort.len() + version.value.len();
        if bytes > self.limits.item_bytes {
            let limit = self.limits.item_bytes;
            return self.doom(Doom::TooLarge { what: "an item", bytes, limit });
        }
        let all = self.call.batch.bytes() + bytes;
        if all > self.limits.batch_bytes {
            let limit = self.limits.batch_bytes;
            return self.doom(Doom::TooLarge { what: "all that one call writes", bytes: all, limit });
        }
        if !version.deleted {
            match has_space(&self.call.batch, &self.items, &addr, bytes, self.limits.storage_bytes).await {
                Ok(true) => {}
                Ok(false) => return self.doom(Doom::StorageFull(self.limits.storage_bytes)),
                Err(error) => return self.doom(Doom::StorageFailed(error)),
            }
        }
        if self.call.doom.is_none() {
            self.call.batch.put(addr, version);
        }
    }
}

/// Return the version that a call with the writes in `batch` sees at an address.
async fn seen(batch: &Batch, items: &Items, addr: &ItemAddr) -> Result<Option<Version>, StorageError> {
    match batch.get(addr) {
        Some(version) => Ok(Some(version.clone())),
        None => items.get(addr).await,
    }
}

/// Return true if a vnode's storage with this limit in bytes has space for an item of this size, in place of the
/// present one.
async fn has_space(
    batch: &Batch,
    items: &Items,
    addr: &ItemAddr,
    bytes: usize,
    limit: usize,
) -> Result<bool, StorageError> {
    let stored = usize::try_from(items.counts().bytes).unwrap_or(usize::MAX);
    // This sum counts replaced items twice, so the exact check is left for a storage that is nearly full.
    if stored.saturating_add(batch.bytes() + bytes) <= limit {
        return Ok(true);
    }
    let present = seen(batch, items, addr).await?;
    Ok(present.is_some_and(|version| addr.key.len() + addr.sort.len() + version.value.len() >= bytes))
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl ResourceLimiter for HostState {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        // A component may have several memories; the limit holds for their sum.
        let by = desired.saturating_sub(current);
        let all = self.memory_bytes.saturating_add(by);
        let denied = if all > self.limits.memory_bytes {
            Some(MemoryDenied::ByInstance(self.limits.memory_bytes))
        } else if !self.room.memory().take(by) {
            Some(MemoryDenied::ByNode(self.room.memory().limit()))
        } else {
            None
        };
        self.growing_by = if denied.is_none() { by } else { 0 };
        self.memory_bytes += self.growing_by;
        self.memory_denied = self.memory_denied.or(denied);
        Ok(denied.is_none())
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        let by = std::mem::take(&mut self.growing_by);
        self.memory_bytes -= by;
        self.room.memory().give_back(by);
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let all = self.table_elements.saturating_add(desired.saturating_sub(current));
        let allowed = all <= MAX_TABLE_ELEMENTS;
        if allowed {
            self.table_elements = all;
        }
        Ok(allowed)
    }

    fn instances(&self) -> usize {
        MAX_CORE_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

impl Drop for HostState {
    fn drop(&mut self) {
        self.room.memory().give_back(self.memory_bytes);
    }
}

impl types::Host for HostState {}

impl context::Host for HostState {
    fn now_ms(&mut self) -> u64 {
        self.import("now-ms");
        self.call.now_ms
    }

    fn next_dot(&mut self) -> context::Dot {
        self.import("next-dot");
        self.dots += 1;
        context::Dot { actor: self.place.actor, counter: self.dots }
    }

    fn request_id(&mut self) -> (u64, u64) {
        self.import("request-id");
        self.call.request
    }

    fn write_format(&mut self) -> u32 {
        self.import("write-format");
        self.place.write_format
    }
}

impl log::Host for HostState {
    fn write(&mut self, level: log::Level, message: String) {
        self.import("log");
        let (module, partition) = (&*self.place.module, self.place.partition.id);
        let request = format_args!("{:016x}{:016x}", self.call.request.0, self.call.request.1);
        self.log.write(module, partition, request, level, &message);
    }
}

impl storage::Host for HostState {
    async fn get(&mut self, key: Vec<u8>, sort: Vec<u8>) -> Option<types::VersionResult> {
        if !self.may_read(Some(&key)) {
            return None;
        }
        match seen(&self.call.batch, &self.items, &ItemAddr { key, sort }).await {
            Ok(version) => version.map(Into::into),
            Err(error) => {
                self.doom(Doom::StorageFailed(error));
                None
            }
        }
    }

    async fn put(&mut self, key: Vec<u8>, sort: Vec<u8>, value: Vec<u8>) {
        self.write(ItemAddr { key, sort }, Version { value, deleted: false }).await;
    }

    async fn delete(&mut self, key: Vec<u8>, sort: Vec<u8>, remains: Vec<u8>) {
        self.write(ItemAddr { key, sort }, Version { value: remains, deleted: true }).await;
    }

    async fn scan(
        &mut self,
        what: storage::Selection,
        after: Option<Vec<u8>>,
        limit: types::Budget,
    ) -> types::Page {
        if !self.may_read(what.key.as_deref()) {
            return types::Page { items: Vec::new(), next: None };
        }
        let limit =
            types::Budget { items: limit.items.min(MAX_SCAN_ITEMS), bytes: limit.bytes.min(MAX_SCAN_BYTES) };
        let storage::Selection { key, start, end, reverse, deleted } = what;
        let selection = Selection { key, start, end, reverse, deleted };
        match self.items.page(&self.call.batch, &selection, after.as_deref(), limit.into()).await {
            Ok(page) => page.into(),
            Err(error) => {
                self.doom(Doom::StorageFailed(error));
                types::Page { items: Vec::new(), next: None }
            }
        }
    }
}
