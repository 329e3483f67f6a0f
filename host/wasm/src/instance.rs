//! One guest instance: its store, its exports, and the calls that a vnode makes to it.

use std::sync::Arc;

use parking_lot::RwLock;
use wasmtime::{Store, Trap, WasmBacktrace};

use super::bindings::annulus::vnode::types::{Budget, Item, Page, Request};
use super::bindings::exports::annulus::vnode as wit;
use super::engine::Module;
use super::error::{CommandFailure, Doom, GuestError, said};
use super::exports::Exports;
use super::host::{CallScope, HostState, MemoryDenied, VnodePlace};
use super::limits::Limits;
use super::meter::{Meter, TimedOut};
use super::room::{Seat, is_exhausted};
use annulus_storage::{Batch, Memory, Place, Storage, Stored};

/// A running guest, which takes one call at a time. After an error for which [`GuestError::poisons`] is true
/// it answers no more calls and must be dropped.
pub struct Instance {
    store: Store<HostState>,
    exports: Exports,
    _seat: Seat,
}

/// Result of a call, as its meter returns it.
type Called<T> = Result<wasmtime::Result<T>, TimedOut>;

/// Result of a call, with the writes that it made to host storage.
pub struct Answer<T> {
    /// The guest's answer.
    pub value: T,
    /// The call's writes, ordered by key and sort. They have not been applied.
    pub writes: Vec<(Place, Stored)>,
    /// Set if the call broke a rule or exceeded a limit: neither the answer nor the writes may be used. The
    /// guest's own memory still is as the call left it.
    pub doom: Option<Doom>,
}

impl Instance {
    /// Start an instance, and give it its partition and settings (`init`).
    ///
    /// # Errors
    /// If the instance cannot be made, or `init` fails or refuses. No instance is left.
    pub async fn start(
        module: &Module,
        place: VnodePlace,
        items: Arc<RwLock<dyn Storage>>,
        config: &[u8],
    ) -> Result<Self, GuestError> {
        let at = place.partition;
        let mut instance = Self::instantiate(module, place, items).await?;
        let meter = instance.begin(CallScope::Told("init"), (0, 0));
        let Self { store, exports, .. } = &mut instance;
        let result = meter.run(exports.vnode.call_init(&mut *store, at, config)).await;
        let answer = instance.end(result)?;
        match answer.value {
            Ok(()) => Ok(instance),
            Err(reason) => Err(GuestError::InitRefused(said(&reason))),
        }
    }

    /// Make an instance for `describe` alone: `init` is not called.
    pub(super) async fn bare(module: &Module, place: VnodePlace) -> Result<Self, GuestError> {
        Self::instantiate(module, place, Arc::new(RwLock::new(Memory::default()))).await
    }

    async fn instantiate(
        module: &Module,
        place: VnodePlace,
        items: Arc<RwLock<dyn Storage>>,
    ) -> Result<Self, GuestError> {
        let (pace, room) = (module.pace.clone(), module.room.clone());
        let mut store = Store::new(module.engine(), HostState::new(place, module.limits, pace, room, items));
        store.limiter(|state| state);
        let seat = module.room.take().map_err(|no_room| GuestError::NoRoom(no_room.to_string()))?;
        let failed = |error: wasmtime::Error| {
            let exhausted = is_exhausted(&error);
            let error = format!("{error:#}");
            if exhausted { GuestError::NoRoom(error) } else { GuestError::Trapped(error) }
        };
        module.pace.prepare(&mut store).map_err(failed)?;
        let instance = arm(&mut store)
            .run(module.pre.instantiate_async(&mut store))
            .await
            .map_err(|TimedOut| GuestError::TimedOut(module.limits.call_time))?
            .map_err(failed)?;
        let exports = module.indices.load(&mut store, &instance).map_err(failed)?;
        Ok(Self { store, exports, _seat: seat })
    }

    pub(super) async fn describe(&mut self) -> Result<wit::vnode::ModuleInfo, GuestError> {
        let meter = self.begin(CallScope::Nothing, (0, 0));
        let result = meter.run(self.exports.vnode.call_describe(&mut self.store)).await;
        Ok(self.end(result)?.value)
    }

    /// Run one command.
    ///
    /// # Errors
    /// The outer error is the host's: the call failed and none of its writes are kept. The inner error is the
    /// guest's own refusal.
    pub async fn command(
        &mut self,
        scope: CallScope,
        id: (u64, u64),
        request: &Request,
    ) -> Result<Result<Answer<Vec<u8>>, CommandFailure>, GuestError> {
        let meter = self.begin(scope, id);
        let result = meter.run(self.exports.vnode.call_handle_command(&mut self.store, request)).await;
        self.answered(result, "the reply", Vec::len)
    }

    /// Run one page of a command that is routed everywhere.
    ///
    /// # Errors
    /// As for [`Instance::command`]. A module without `coverage` answers [`CommandFailure::UnknownCommand`].
    pub async fn coverage(
        &mut self,
        scope: CallScope,
        id: (u64, u64),
        request: &Request,
        after: Option<&[u8]>,
        limit: Budget,
    ) -> Result<Result<Answer<wit::coverage::Values>, CommandFailure>, GuestError> {
        let meter = self.begin(scope, id);
        let Some(coverage) = &self.exports.coverage else { return Ok(Err(CommandFailure::UnknownCommand)) };
        let result = meter.run(coverage.call_handle_coverage(&mut self.store, request, after, limit)).await;
        self.answered(result, "one page of values", |values| {
            values.values.iter().map(|value| value.len() + 5).sum()
        })
    }

    /// Merge versions of items (a pure function). `None` if the module does not export `merge`.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn merge(
        &mut self,
        conflicts: &[wit::merge::Conflict],
    ) -> Option<Result<Vec<wit::merge::Outcome>, GuestError>> {
        let meter = self.begin(CallScope::Pure, (0, 0));
        let merge = self.exports.merge.as_ref()?;
        let result = meter.run(merge.call_merge(&mut self.store, conflicts)).await;
        Some(self.end(result).map(|answer| answer.value))
    }

    /// Return true if the guest keeps its items itself.
    pub fn keeps_items(&self) -> bool {
        self.exports.handoff.is_some()
    }

    /// Return one page of all items that the guest keeps. Empty if the host keeps them.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn fold(&mut self, after: Option<&[u8]>, limit: Budget) -> Result<Page, GuestError> {
        let meter = self.begin(CallScope::Told("fold"), (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(Page { items: Vec::new(), next: None }) };
        let result = meter.run(handoff.call_fold(&mut self.store, after, limit)).await;
        Ok(self.end(result)?.value)
    }

    /// Return the items of one key that the guest keeps, including tombstones.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn items_of(&mut self, key: &[u8]) -> Result<Vec<Item>, GuestError> {
        let meter = self.begin(CallScope::Told("encode-handoff-items"), (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(Vec::new()) };
        let result = meter.run(handoff.call_encode_handoff_items(&mut self.store, key)).await;
        Ok(self.end(result)?.value)
    }

    /// Give items to a guest that keeps its items itself. The answer's value lists the items that it
    /// rejected.
    ///
    /// # Errors
    /// If the call fails. A broken rule is not an error here but is in [`Answer::doom`].
    pub async fn take_items(
        &mut self,
        items: &[Item],
    ) -> Result<Answer<Vec<wit::handoff::Rejection>>, GuestError> {
        let meter = self.begin(CallScope::All { write: true }, (0, 0));
        let Some(handoff) = &self.exports.handoff else {
            return Ok(Answer { value: Vec::new(), writes: Vec::new(), doom: None });
        };
        let result = meter.run(handoff.call_handle_handoff_data(&mut self.store, items)).await;
        self.end(result)
    }

    /// Tell the guest which tombstones every replica has, so that it can remove them. Returns the call's
    /// writes.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn forget(&mut self, tombstones: &[Item]) -> Result<Vec<(Place, Stored)>, GuestError> {
        let meter = self.begin(CallScope::All { write: true }, (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(Vec::new()) };
        let result = meter.run(handoff.call_forget(&mut self.store, tombstones)).await;
        Ok(self.end(result)?.writes)
    }

    /// Return the approximate number of items that the guest keeps.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn count(&mut self) -> Result<u64, GuestError> {
        let meter = self.begin(CallScope::Told("count"), (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(0) };
        let result = meter.run(handoff.call_count(&mut self.store)).await;
        Ok(self.end(result)?.value)
    }

    /// Have the guest drop all its items, which have moved to another node for good. The vnode's host storage
    /// is deleted as a whole, so writes of this call are ignored.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn delete(&mut self) -> Result<(), GuestError> {
        let meter = self.begin(CallScope::All { write: true }, (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(()) };
        let result = meter.run(handoff.call_delete(&mut self.store)).await;
        self.end(result).map(drop)
    }

    /// Ask the guest whether a handoff may start. True if the module does not export `transfer`.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn handoff_starting(
        &mut self,
        kind: wit::transfer::Kind,
        target: &str,
    ) -> Result<bool, GuestError> {
        let meter = self.begin(CallScope::Told("handoff-starting"), (0, 0));
        let Some(transfer) = &self.exports.transfer else { return Ok(true) };
        let result = meter.run(transfer.call_handoff_starting(&mut self.store, kind, target)).await;
        Ok(self.end(result)?.value)
    }

    /// Tell the guest whether a handoff finished or was cancelled.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn handoff_ended(
        &mut self,
        kind: wit::transfer::Kind,
        target: &str,
        finished: bool,
    ) -> Result<(), GuestError> {
        let callback = if finished { "handoff-finished" } else { "handoff-cancelled" };
        let meter = self.begin(CallScope::Told(callback), (0, 0));
        let Some(transfer) = &self.exports.transfer else { return Ok(()) };
        let result = if finished {
            meter.run(transfer.call_handoff_finished(&mut self.store, kind, target)).await
        } else {
            meter.run(transfer.call_handoff_cancelled(&mut self.store, kind, target)).await
        };
        self.end(result).map(drop)
    }

    /// Ask the guest whether to run a command while a handoff is under way. True if the module does not
    /// export `transfer`.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn handles_in_handoff(&mut self, request: &Request) -> Result<bool, GuestError> {
        let meter = self.begin(CallScope::Told("handle-handoff-command"), (0, 0));
        let Some(transfer) = &self.exports.transfer else { return Ok(true) };
        let result = meter.run(transfer.call_handle_handoff_command(&mut self.store, request)).await;
        Ok(self.end(result)?.value == wit::transfer::Choice::Handle)
    }

    /// Tell a new instance why its predecessor ended.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn handle_exit(&mut self, reason: &str) -> Result<(), GuestError> {
        let meter = self.begin(CallScope::Told("handle-exit"), (0, 0));
        let Some(lifecycle) = &self.exports.lifecycle else { return Ok(()) };
        let result = meter.run(lifecycle.call_handle_exit(&mut self.store, reason)).await;
        self.end(result).map(drop)
    }

    /// Tell the guest that the instance is about to be stopped. Returns its last writes.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn terminate(&mut self, reason: &str) -> Result<Vec<(Place, Stored)>, GuestError> {
        let meter = self.begin(CallScope::All { write: true }, (0, 0));
        let Some(lifecycle) = &self.exports.lifecycle else { return Ok(Vec::new()) };
        let result = meter.run(lifecycle.call_terminate(&mut self.store, reason)).await;
        Ok(self.end(result)?.writes)
    }

    /// Return the size of the guest's memory in bytes. WebAssembly never shrinks a memory, so this is also
    /// its peak.
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    /// Return the linear memory of all instances of the node and the most that they may have, in bytes.
    pub fn node_memory(&self) -> (usize, usize) {
        let memory = self.store.data().room.memory();
        (memory.used(), memory.limit())
    }

    /// Return the limits of the module.
    pub fn limits(&self) -> Limits {
        self.store.data().limits
    }

    /// Return the number of dots given so far. A later instance of this vnode must continue from it (R8).
    pub fn dots(&self) -> u64 {
        self.store.data().dots()
    }

    /// Set the number of dots that previous instances of this vnode have given.
    pub fn set_dots(&mut self, dots: u64) {
        self.store.data_mut().set_dots(dots);
    }

    /// Set up a call. The caller runs the call through the returned meter.
    fn begin(&mut self, scope: CallScope, request: (u64, u64)) -> Meter {
        let meter = arm(&mut self.store);
        let state = self.store.data_mut();
        state.memory_denied = None;
        state.call.scope = scope;
        state.call.request = request;
        state.call.now_ms = annulus_ground::wall_ms();
        state.call.batch = Batch::default();
        state.call.doom = None;
        meter
    }

    /// End a call for which a broken rule is an error.
    fn end<T>(&mut self, result: Called<T>) -> Result<Answer<T>, GuestError> {
        let answer = self.judge(result)?;
        match answer.doom {
            None => Ok(answer),
            Some(doom) => Err(GuestError::Doomed(doom)),
        }
    }

    /// End a command. Its answer may also be too large.
    fn answered<T, E: Into<CommandFailure>>(
        &mut self,
        result: Called<Result<T, E>>,
        what: &'static str,
        length: impl FnOnce(&T) -> usize,
    ) -> Result<Result<Answer<T>, CommandFailure>, GuestError> {
        let Answer { value, writes, mut doom } = self.judge(result)?;
        match value {
            Ok(value) => {
                let (bytes, limit) = (length(&value), self.store.data().limits.reply_bytes);
                if bytes > limit {
                    doom = doom.or(Some(Doom::TooLarge { what, bytes, limit }));
                }
                Ok(Ok(Answer { value, writes, doom }))
            }
            Err(failure) => {
                let failure = failure.into();
                let (bytes, limit) = (failure.detail_bytes(), self.store.data().limits.reply_bytes);
                if bytes > limit {
                    doom = doom.or(Some(Doom::TooLarge { what: "the detail of a refusal", bytes, limit }));
                }
                doom.map_or(Ok(Err(failure)), |doom| Err(GuestError::Doomed(doom)))
            }
        }
    }

    fn judge<T>(&mut self, result: Called<T>) -> Result<Answer<T>, GuestError> {
        let state = self.store.data_mut();
        let (batch, doom) = (std::mem::take(&mut state.call.batch), state.call.doom.take());
        match result {
            Err(TimedOut) => Err(GuestError::TimedOut(state.limits.call_time)),
            Ok(Err(error)) => Err(explain(&error, state)),
            Ok(Ok(value)) => Ok(Answer { value, writes: batch.into_writes().collect(), doom }),
        }
    }
}

/// Start the time limit of the code that runs in the store next.
fn arm(store: &mut Store<HostState>) -> Meter {
    let pace = store.data().pace.clone();
    pace.arm(store);
    let state = store.data();
    Meter::new(&pace, &state.yielded, state.limits.call_time)
}

/// Return a readable error for a failed call: the end of the guest's stderr if there is any, otherwise the
/// trap and the function in which it occurred.
fn explain(error: &wasmtime::Error, state: &HostState) -> GuestError {
    let words = state.stderr.take();
    if let Some(Trap::StackOverflow) = error.downcast_ref::<Trap>() {
        return GuestError::Trapped("its stack overflowed".to_owned());
    }
    match state.memory_denied {
        Some(MemoryDenied::ByInstance(limit)) => {
            let limit = limit >> 20;
            return GuestError::Trapped(format!("it asked for more memory than its limit of {limit} MiB"));
        }
        Some(MemoryDenied::ByNode(limit)) => {
            return GuestError::Trapped(format!(
                "it asked for memory when all guests of this node had their {} MiB (`start --guest-memory`)",
                limit >> 20
            ));
        }
        None => {}
    }
    let place = error
        .downcast_ref::<WasmBacktrace>()
        .and_then(|trace| trace.frames().iter().find_map(|frame| frame.func_name().map(str::to_owned)));
    let module = &state.place().module;
    tracing::debug!(%module, error = format!("{error:?}"), "a guest trapped");
    let what = error.downcast_ref::<Trap>().map_or_else(|| format!("{error:#}"), ToString::to_string);
    GuestError::Trapped(match (words.is_empty(), place) {
        (false, _) => words,
        (true, Some(place)) => format!("{what} in {place}"),
        (true, None) => what,
    })
}
