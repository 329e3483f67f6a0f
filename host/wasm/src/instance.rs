//! A guest instance: a store, its exports, and the calls that a vnode makes.

use annulus_core::contract::{Conflict, MergeOutcome, Rejection, TransferKind, Values};
use annulus_core::item::{Budget, Item, Page};
use annulus_core::request::Request;
use wasmtime::{Store, Trap, WasmBacktrace};

use super::bindings::annulus::vnode::types::ItemParam;
use super::bindings::exports::annulus::vnode as wit;
use super::engine::Module;
use super::error::{CommandFailure, Doom, GuestError, said};
use super::exports::Exports;
use super::host::{CallScope, HostState, MemoryDenied, VnodePlace};
use super::limits::Limits;
use super::meter::{Meter, TimedOut};
use super::room::{Seat, is_exhausted};
use annulus_storage::{Batch, Items};

/// A running guest, for one call at a time. After an error that [`GuestError::poisons`] it must be dropped.
pub struct Instance {
    store: Store<HostState>,
    exports: Exports,
    _seat: Seat,
}

/// The result of a metered call.
type Called<T> = Result<wasmtime::Result<T>, TimedOut>;

/// The result of a call, with its writes to host storage.
pub struct Answer<T> {
    /// The returned value.
    pub value: T,
    /// The writes, ordered by address, not applied yet.
    pub writes: Vec<Item>,
    /// Set if the call broke a rule or exceeded a limit: neither the value nor the writes may be used. Changes that the
    /// call made to items in the guest's memory remain.
    pub doom: Option<Doom>,
}

impl<T> Answer<T> {
    /// Convert the value.
    fn map<U>(self, convert: impl FnOnce(T) -> U) -> Answer<U> {
        let Self { value, writes, doom } = self;
        Answer { value: convert(value), writes, doom }
    }
}

impl Instance {
    /// Start an instance and call its `init` with its partition and settings.
    ///
    /// # Errors
    /// If the component cannot be instantiated, or if `init` refuses or fails. No instance exists then.
    pub async fn start(
        module: &Module,
        place: VnodePlace,
        items: Items,
        config: &[u8],
    ) -> Result<Self, GuestError> {
        let at = place.partition;
        let mut instance = Self::instantiate(module, place, items).await?;
        let meter = instance.begin(CallScope::Told("init"), (0, 0));
        let Self { store, exports, .. } = &mut instance;
        let result = meter.run(exports.vnode.call_init(&mut *store, at.into(), config)).await;
        let answer = instance.end(result)?;
        match answer.value {
            Ok(()) => Ok(instance),
            Err(reason) => Err(GuestError::InitRefused(said(&reason))),
        }
    }

    /// Start an instance for `describe` only.
    pub(super) async fn bare(module: &Module, place: VnodePlace) -> Result<Self, GuestError> {
        Self::instantiate(module, place, Items::memory()).await
    }

    async fn instantiate(module: &Module, place: VnodePlace, items: Items) -> Result<Self, GuestError> {
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
            .map_err(|TimedOut| GuestError::TimedOut(module.limits.call_time))?;
        let instance = match (instance, store.data().memory_denied) {
            (Ok(instance), _) => instance,
            (Err(_), Some(denied @ MemoryDenied::ByNode(_))) => {
                return Err(GuestError::NoRoom(denied.to_string()));
            }
            (Err(error), _) => return Err(failed(error)),
        };
        let exports = module.indices.load(&mut store, &instance).map_err(failed)?;
        Ok(Self { store, exports, _seat: seat })
    }

    pub(super) async fn describe(&mut self) -> Result<wit::vnode::ModuleInfo, GuestError> {
        let meter = self.begin(CallScope::Nothing, (0, 0));
        let result = meter.run(self.exports.vnode.call_describe(&mut self.store)).await;
        Ok(self.end(result)?.value)
    }

    /// Run a command.
    ///
    /// # Errors
    /// The outer error is that of the call, whose writes were discarded. The inner error is the guest's own.
    pub async fn command(
        &mut self,
        scope: CallScope,
        id: (u64, u64),
        request: &Request,
    ) -> Result<Result<Answer<Vec<u8>>, CommandFailure>, GuestError> {
        let meter = self.begin(scope, id);
        let result = meter.run(self.exports.vnode.call_handle_command(&mut self.store, request.into())).await;
        self.answered(result, "the reply", Vec::len)
    }

    /// Run a page of a coverage command.
    ///
    /// # Errors
    /// The same as for [`Instance::command`]. A module without `coverage` does not know the command.
    pub async fn coverage(
        &mut self,
        scope: CallScope,
        id: (u64, u64),
        request: &Request,
        after: Option<&[u8]>,
        limit: Budget,
    ) -> Result<Result<Answer<Values>, CommandFailure>, GuestError> {
        let meter = self.begin(scope, id);
        let Some(coverage) = &self.exports.coverage else { return Ok(Err(CommandFailure::UnknownCommand)) };
        let call = coverage.call_handle_coverage(&mut self.store, request.into(), after, limit.into());
        let result = meter.run(call).await;
        let answered = self.answered(result, "one page of values", |page| {
            page.values.iter().map(|value| value.len() + 5).sum()
        })?;
        Ok(answered.map(|answer| answer.map(Values::from)))
    }

    /// Merge versions of items by the module's pure function. Return `None` if the module does not export `merge`.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn merge(&mut self, conflicts: &[Conflict]) -> Option<Result<Vec<MergeOutcome>, GuestError>> {
        let meter = self.begin(CallScope::Pure, (0, 0));
        let merge = self.exports.merge.as_ref()?;
        let conflicts: Vec<_> = conflicts.iter().map(wit::merge::Conflict::from).collect();
        let result = meter.run(merge.call_merge(&mut self.store, &conflicts)).await;
        Some(self.end(result).map(|answer| answer.value.into_iter().map(MergeOutcome::from).collect()))
    }

    /// Return true if the module merges versions of items itself.
    pub fn merges(&self) -> bool {
        self.exports.merge.is_some()
    }

    /// Return true if the guest keeps its items in its memory.
    pub fn keeps_items(&self) -> bool {
        self.exports.handoff.is_some()
    }

    /// Return a page of the items in the guest's memory.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn fold(&mut self, after: Option<&[u8]>, limit: Budget) -> Result<Page, GuestError> {
        let meter = self.begin(CallScope::Told("fold"), (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(Page::default()) };
        let result = meter.run(handoff.call_fold(&mut self.store, after, limit.into())).await;
        Ok(self.end(result)?.value.into())
    }

    /// Return the items of one key in the guest's memory, tombstones included.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn items_of(&mut self, key: &[u8]) -> Result<Vec<Item>, GuestError> {
        let meter = self.begin(CallScope::Told("encode-handoff-items"), (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(Vec::new()) };
        let result = meter.run(handoff.call_encode_handoff_items(&mut self.store, key)).await;
        Ok(self.end(result)?.value.into_iter().map(Item::from).collect())
    }

    /// Give items to a guest that keeps them in its memory. Return the items that it rejected.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn take_items(&mut self, items: &[Item]) -> Result<Answer<Vec<Rejection>>, GuestError> {
        let meter = self.begin(CallScope::All { write: true }, (0, 0));
        let Some(handoff) = &self.exports.handoff else {
            return Ok(Answer { value: Vec::new(), writes: Vec::new(), doom: None });
        };
        let items: Vec<_> = items.iter().map(ItemParam::from).collect();
        let result = meter.run(handoff.call_handle_handoff_data(&mut self.store, &items)).await;
        Ok(self.end(result)?.map(|rejections| rejections.into_iter().map(Rejection::from).collect()))
    }

    /// Drop tombstones that replicas no longer need. Return the writes to host storage.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn forget(&mut self, tombstones: &[Item]) -> Result<Vec<Item>, GuestError> {
        let meter = self.begin(CallScope::All { write: true }, (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(Vec::new()) };
        let tombstones: Vec<_> = tombstones.iter().map(ItemParam::from).collect();
        let result = meter.run(handoff.call_forget(&mut self.store, &tombstones)).await;
        Ok(self.end(result)?.writes)
    }

    /// Return the approximate number of items in the guest's memory.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn count(&mut self) -> Result<u64, GuestError> {
        let meter = self.begin(CallScope::Told("count"), (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(0) };
        let result = meter.run(handoff.call_count(&mut self.store)).await;
        Ok(self.end(result)?.value)
    }

    /// Drop all items: another node owns them permanently. The host storage is dropped as a whole, so writes to it are
    /// discarded.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn delete(&mut self) -> Result<(), GuestError> {
        let meter = self.begin(CallScope::All { write: true }, (0, 0));
        let Some(handoff) = &self.exports.handoff else { return Ok(()) };
        let result = meter.run(handoff.call_delete(&mut self.store)).await;
        self.end(result).map(drop)
    }

    /// Ask whether a handoff may start. A module without `transfer` agrees.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn handoff_starting(&mut self, kind: TransferKind, target: &str) -> Result<bool, GuestError> {
        let meter = self.begin(CallScope::Told("handoff-starting"), (0, 0));
        let Some(transfer) = &self.exports.transfer else { return Ok(true) };
        let result = meter.run(transfer.call_handoff_starting(&mut self.store, kind.into(), target)).await;
        Ok(self.end(result)?.value)
    }

    /// Tell the guest how a handoff ended.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn handoff_ended(
        &mut self,
        kind: TransferKind,
        target: &str,
        finished: bool,
    ) -> Result<(), GuestError> {
        let callback = if finished { "handoff-finished" } else { "handoff-cancelled" };
        let meter = self.begin(CallScope::Told(callback), (0, 0));
        let Some(transfer) = &self.exports.transfer else { return Ok(()) };
        let result = if finished {
            meter.run(transfer.call_handoff_finished(&mut self.store, kind.into(), target)).await
        } else {
            meter.run(transfer.call_handoff_cancelled(&mut self.store, kind.into(), target)).await
        };
        self.end(result).map(drop)
    }

    /// Ask whether the module runs this command during a handoff. A module without `transfer` runs every command.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn handles_in_handoff(&mut self, request: &Request) -> Result<bool, GuestError> {
        let meter = self.begin(CallScope::Told("handle-handoff-command"), (0, 0));
        let Some(transfer) = &self.exports.transfer else { return Ok(true) };
        let result = meter.run(transfer.call_handle_handoff_command(&mut self.store, request.into())).await;
        Ok(self.end(result)?.value == wit::transfer::Choice::Handle)
    }

    /// Tell the instance why the previous one ended.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn handle_exit(&mut self, reason: &str) -> Result<(), GuestError> {
        let meter = self.begin(CallScope::Told("handle-exit"), (0, 0));
        let Some(lifecycle) = &self.exports.lifecycle else { return Ok(()) };
        let result = meter.run(lifecycle.call_handle_exit(&mut self.store, reason)).await;
        self.end(result).map(drop)
    }

    /// Shut the instance down. Return its last writes to host storage.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn terminate(&mut self, reason: &str) -> Result<Vec<Item>, GuestError> {
        let meter = self.begin(CallScope::All { write: true }, (0, 0));
        let Some(lifecycle) = &self.exports.lifecycle else { return Ok(Vec::new()) };
        let result = meter.run(lifecycle.call_terminate(&mut self.store, reason)).await;
        Ok(self.end(result)?.writes)
    }

    /// Return the size of the guest's memory in bytes. WebAssembly never returns memory, so this is also its
    /// maximum so far.
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    /// Return the linear memory of all instances of the node and the most that they may have, in bytes.
    pub fn node_memory(&self) -> (usize, usize) {
        let memory = self.store.data().room.memory();
        (memory.used(), memory.limit())
    }

    /// Return the limits of the instance.
    pub fn limits(&self) -> Limits {
        self.store.data().limits
    }

    /// Return the number of dots assigned: the next instance of the vnode must continue after them (R8).
    pub fn dots(&self) -> u64 {
        self.store.data().dots()
    }

    /// Continue after the dots that a previous instance assigned.
    pub fn set_dots(&mut self, dots: u64) {
        self.store.data_mut().set_dots(dots);
    }

    /// Set up a call, to be run by the returned meter.
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

    /// Return the result of a call that must not be doomed.
    fn end<T>(&mut self, result: Called<T>) -> Result<Answer<T>, GuestError> {
        let answer = self.judge(result)?;
        match answer.doom {
            None => Ok(answer),
            Some(doom) => Err(GuestError::Doomed(doom)),
        }
    }

    /// Return the result of a command, whose reply may be too large.
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
            Ok(Ok(value)) => Ok(Answer { value, writes: batch.into_items().collect(), doom }),
        }
    }
}

/// Start the time limit of the next call.
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
    if let Some(denied) = state.memory_denied {
        return GuestError::Trapped(denied.to_string());
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
