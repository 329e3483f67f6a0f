//! Modules in plain Rust, which run in the same actor behind the same mailbox as a component does.
//!
//! What `bench --baseline` holds a guest against is one, and a simulation's guests are others.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::timeout;

use annulus_storage::{Place, Storage, Stored};
use annulus_wasm::{
    Answer, Budget, CommandFailure, CommandInfo, Conflict, Doom, GuestError, Item, Limits, MergeOutcome,
    Page, Rejection, Request, TransferKind, Values, VnodePlace,
};

/// A call of native code.
pub enum Call<'a, T> {
    /// It has come to its end.
    Done(Result<T, GuestError>),
    /// It is under way.
    Later(Pin<Box<dyn Future<Output = Result<T, GuestError>> + Send + 'a>>),
}

impl<'a, T> Call<'a, T> {
    /// One that gave this, without a wait.
    pub fn done(value: T) -> Self {
        Self::Done(Ok(value))
    }

    /// One that gives what the future does.
    pub fn later(future: impl Future<Output = Result<T, GuestError>> + Send + 'a) -> Self {
        Self::Later(Box::pin(future))
    }
}

/// What a command gave, or the guest's own no.
pub type Answered<T> = Result<Answer<T>, CommandFailure>;

/// What an instance is made with.
pub struct NativePlace<'a> {
    /// Where its vnode is.
    pub vnode: VnodePlace,
    /// CBOR map of the module's settings.
    pub config: &'a [u8],
    /// The items that the host keeps for the vnode: to be read. What a call writes is in its answer.
    pub items: Arc<RwLock<dyn Storage>>,
    /// What it may use. The host ends calls that take too long and drops replies that are too long; the rest
    /// is the module's to keep.
    pub limits: Limits,
}

/// What instances are made of, where that is no component.
pub trait NativeModule: Send + Sync + 'static {
    /// A new instance, after its `init`.
    fn start<'a>(&'a self, place: NativePlace<'a>) -> Call<'a, Box<dyn NativeGuest>>;
}

/// An instance in plain Rust: the calls that a vnode makes of a guest, as the contract describes them. After
/// an error that [`GuestError::poisons`], or a call that was given up, it is dropped.
pub trait NativeGuest: Send {
    /// Runs one command.
    fn command<'a>(
        &'a mut self,
        info: &'a CommandInfo,
        id: (u64, u64),
        request: &'a Request,
    ) -> Call<'a, Answered<Vec<u8>>>;

    /// One page of a command that goes everywhere.
    fn coverage<'a>(
        &'a mut self,
        _info: &'a CommandInfo,
        _id: (u64, u64),
        _request: &'a Request,
        _after: Option<&'a [u8]>,
        _limit: Budget,
    ) -> Call<'a, Answered<Values>> {
        Call::done(Err(CommandFailure::UnknownCommand))
    }

    /// Are its items its own? Else the host keeps them.
    fn keeps_items(&self) -> bool {
        true
    }

    /// One page of the items that it keeps.
    fn fold<'a>(&'a mut self, _after: Option<&'a [u8]>, _limit: Budget) -> Call<'a, Page> {
        Call::done(Page { items: Vec::new(), next: None })
    }

    /// How many items it keeps.
    fn count(&mut self) -> Call<'_, u64> {
        Call::done(0)
    }

    /// The items of one key that it keeps, tombstones too.
    fn items_of<'a>(&'a mut self, _key: &'a [u8]) -> Call<'a, Vec<Item>> {
        Call::done(Vec::new())
    }

    /// Takes items in that it is to keep; answers those that it could not take.
    fn take<'a>(&'a mut self, _items: &'a [Item]) -> Call<'a, Answer<Vec<Rejection>>> {
        Call::done(Answer { value: Vec::new(), writes: Vec::new(), doom: None })
    }

    /// Merges versions of items that the host keeps; none if it has no say in that.
    fn merge<'a>(&'a mut self, _conflicts: &'a [Conflict]) -> Option<Call<'a, Vec<MergeOutcome>>> {
        None
    }

    /// These tombstones nobody needs any more. Answers what it writes to host storage.
    fn forget<'a>(&'a mut self, _tombstones: &'a [Item]) -> Call<'a, Vec<(Place, Stored)>> {
        Call::done(Vec::new())
    }

    /// All items are elsewhere for good.
    fn delete(&mut self) -> Call<'_, ()> {
        Call::done(())
    }

    /// Bytes that its items take, and how many they may, where that is limited.
    fn memory(&self) -> Option<(usize, usize)> {
        None
    }

    /// May a handoff start?
    fn handoff_starting<'a>(&'a mut self, _kind: TransferKind, _target: &'a str) -> Call<'a, bool> {
        Call::done(true)
    }

    /// How a handoff ended.
    fn handoff_ended<'a>(
        &'a mut self,
        _kind: TransferKind,
        _target: &'a str,
        _finished: bool,
    ) -> Call<'a, ()> {
        Call::done(())
    }

    /// Does it run this command while it hands off?
    fn handles_in_handoff<'a>(&'a mut self, _request: &'a Request) -> Call<'a, bool> {
        Call::done(true)
    }

    /// Why the instance before it ended.
    fn handle_exit<'a>(&'a mut self, _reason: &'a str) -> Call<'a, ()> {
        Call::done(())
    }

    /// It ends in order. Answers what it writes to host storage.
    fn terminate<'a>(&'a mut self, _reason: &'a str) -> Call<'a, Vec<(Place, Stored)>> {
        Call::done(Vec::new())
    }

    /// Dots given so far.
    fn dots(&self) -> u64 {
        0
    }

    /// Goes on after the dots that an instance before it gave.
    fn set_dots(&mut self, _dots: u64) {}
}

/// A running native guest, held to its limits.
pub(super) struct Native {
    guest: Box<dyn NativeGuest>,
    limits: Limits,
}

impl Native {
    pub(super) async fn start(module: &dyn NativeModule, place: NativePlace<'_>) -> Result<Self, GuestError> {
        let limits = place.limits;
        let guest = within(limits.call_time, module.start(place)).await?;
        Ok(Self { guest, limits })
    }

    pub(super) fn guest(&self) -> &dyn NativeGuest {
        &*self.guest
    }

    pub(super) fn guest_mut(&mut self) -> &mut dyn NativeGuest {
        &mut *self.guest
    }

    /// Runs one call within the time that it may take.
    pub(super) async fn call<'a, T>(
        &'a mut self,
        call: impl FnOnce(&'a mut dyn NativeGuest) -> Call<'a, T>,
    ) -> Result<T, GuestError> {
        within(self.limits.call_time, call(&mut *self.guest)).await
    }

    pub(super) async fn merge(
        &mut self,
        conflicts: &[Conflict],
    ) -> Option<Result<Vec<MergeOutcome>, GuestError>> {
        let limit = self.limits.call_time;
        Some(within(limit, self.guest.merge(conflicts)?).await)
    }

    /// Runs one command, whose answer may be too long.
    pub(super) async fn answer<'a, T>(
        &'a mut self,
        what: &'static str,
        length: impl FnOnce(&T) -> usize,
        call: impl FnOnce(&'a mut dyn NativeGuest) -> Call<'a, Answered<T>>,
    ) -> Result<Answered<T>, GuestError> {
        let limit = self.limits.reply_bytes;
        let answered = self.call(call).await?;
        Ok(answered.map(|mut answer| {
            let bytes = length(&answer.value);
            if bytes > limit {
                answer.doom.get_or_insert(Doom::TooLarge { what, bytes, limit });
            }
            answer
        }))
    }
}

async fn within<T>(limit: Duration, call: Call<'_, T>) -> Result<T, GuestError> {
    match call {
        Call::Done(result) => result,
        Call::Later(call) => timeout(limit, call).await.unwrap_or(Err(GuestError::TimedOut(limit))),
    }
}
