//! The code of a guest behind traits: a [`Program`] starts instances, a [`Runtime`] is one of them.
//!
//! A component is one implementation. The baseline of `bench --baseline` and the guests of a simulation are
//! others, in plain Rust: they run in the same actors behind the same mailboxes.

use std::pin::Pin;

use annulus_core::contract::{Conflict, MergeOutcome, Rejection, TransferKind, Values};
use annulus_core::description::CommandInfo;
use annulus_core::item::{Budget, Item, Page};
use annulus_core::request::Request;
use tokio::time::timeout;

use annulus_storage::Items;
use annulus_wasm::{Answer, CommandFailure, Doom, GuestError, Instance, Limits, VnodePlace};

/// A call of a guest.
pub enum GuestCall<'a, T> {
    /// The call has returned.
    Done(Result<T, GuestError>),
    /// The call is in progress.
    Pending(Pin<Box<dyn Future<Output = Result<T, GuestError>> + Send + 'a>>),
}

impl<'a, T> GuestCall<'a, T> {
    /// Create a call that has returned this value.
    pub fn done(value: T) -> Self {
        Self::Done(Ok(value))
    }

    /// Create a call that returns the output of a future.
    pub fn pending(future: impl Future<Output = Result<T, GuestError>> + Send + 'a) -> Self {
        Self::Pending(Box::pin(future))
    }

    /// Wait for the result, within the time limit if there is one to enforce.
    pub(super) async fn within(self, limits: Option<Limits>) -> Result<T, GuestError> {
        match (self, limits) {
            (Self::Done(result), _) => result,
            (Self::Pending(call), None) => call.await,
            (Self::Pending(call), Some(Limits { call_time, .. })) => {
                timeout(call_time, call).await.unwrap_or(Err(GuestError::TimedOut(call_time)))
            }
        }
    }
}

/// The result of a command: its answer, or the failure that the guest reports.
pub type CommandResult<T> = Result<Answer<T>, CommandFailure>;

/// The arguments of a new instance.
pub struct InstanceConfig<'a> {
    /// Identity and partition of the vnode.
    pub vnode: VnodePlace,
    /// CBOR map of the module's settings, for `init`.
    pub settings: &'a [u8],
    /// The vnode's host storage, for reads. Writes are part of an answer.
    pub items: Items,
    /// Limits of the instance.
    pub limits: Limits,
}

/// Code that vnodes run.
pub trait Program: Send + Sync + 'static {
    /// Start an instance and call its `init`.
    fn start<'a>(&'a self, config: InstanceConfig<'a>) -> GuestCall<'a, Box<dyn Runtime>>;

    /// Return true if the instances enforce their [`Limits`] themselves. Otherwise the vnode ends calls that exceed the
    /// time limit and rejects replies that exceed the size limit, and the program must enforce all other limits.
    fn enforces_limits(&self) -> bool {
        false
    }
}

/// An instance: the calls of the contract that a vnode makes. After an error that [`GuestError::poisons`], or
/// a call that was cancelled, the instance is dropped.
pub trait Runtime: Send {
    /// Return the instance of a component. Its commands, by far the most frequent calls, are awaited in place: the
    /// allocation of a pending [`GuestCall`] would cost a few percent of the throughput of a vnode.
    fn as_component(&mut self) -> Option<&mut Instance> {
        None
    }

    /// Run a command.
    fn command<'a>(
        &'a mut self,
        info: &'a CommandInfo,
        id: (u64, u64),
        request: &'a Request,
    ) -> GuestCall<'a, CommandResult<Vec<u8>>>;

    /// Run a page of a coverage command.
    fn coverage<'a>(
        &'a mut self,
        _info: &'a CommandInfo,
        _id: (u64, u64),
        _request: &'a Request,
        _after: Option<&'a [u8]>,
        _limit: Budget,
    ) -> GuestCall<'a, CommandResult<Values>> {
        GuestCall::done(Err(CommandFailure::UnknownCommand))
    }

    /// Return true if the instance keeps its items, false if they are in host storage.
    fn keeps_items(&self) -> bool {
        true
    }

    /// Return a page of the items that the instance keeps.
    fn fold<'a>(&'a mut self, _after: Option<&'a [u8]>, _limit: Budget) -> GuestCall<'a, Page> {
        GuestCall::done(Page::default())
    }

    /// Return the approximate number of items that the instance keeps.
    fn count(&mut self) -> GuestCall<'_, u64> {
        GuestCall::done(0)
    }

    /// Return the items of one key that the instance keeps, tombstones included.
    fn items_of<'a>(&'a mut self, _key: &'a [u8]) -> GuestCall<'a, Vec<Item>> {
        GuestCall::done(Vec::new())
    }

    /// Give items to an instance that keeps them. The answer lists the items that it rejected.
    fn take<'a>(&'a mut self, _items: &'a [Item]) -> GuestCall<'a, Answer<Vec<Rejection>>> {
        GuestCall::done(Answer { value: Vec::new(), writes: Vec::new(), doom: None })
    }

    /// Merge versions of items in host storage. Return `None` if the module has no merge function.
    fn merge<'a>(&'a mut self, _conflicts: &'a [Conflict]) -> Option<GuestCall<'a, Vec<MergeOutcome>>> {
        None
    }

    /// Drop tombstones that replicas no longer need. Return the writes to host storage.
    fn forget<'a>(&'a mut self, _tombstones: &'a [Item]) -> GuestCall<'a, Vec<Item>> {
        GuestCall::done(Vec::new())
    }

    /// Drop all items: another node owns them permanently.
    fn delete(&mut self) -> GuestCall<'_, ()> {
        GuestCall::done(())
    }

    /// Return the memory in use and its limit in bytes, or `None` if the items are not in the instance's memory or the
    /// memory is not limited.
    fn memory(&self) -> Option<(usize, usize)> {
        None
    }

    /// Return the memory of all instances of the node and their common limit in bytes, or `None` without such a limit.
    fn node_memory(&self) -> Option<(usize, usize)> {
        None
    }

    /// Ask whether a handoff may start.
    fn handoff_starting<'a>(&'a mut self, _kind: TransferKind, _target: &'a str) -> GuestCall<'a, bool> {
        GuestCall::done(true)
    }

    /// Tell the instance how a handoff ended.
    fn handoff_ended<'a>(
        &'a mut self,
        _kind: TransferKind,
        _target: &'a str,
        _finished: bool,
    ) -> GuestCall<'a, ()> {
        GuestCall::done(())
    }

    /// Ask whether the module runs this command during a handoff.
    fn handles_in_handoff<'a>(&'a mut self, _request: &'a Request) -> GuestCall<'a, bool> {
        GuestCall::done(true)
    }

    /// Tell the instance why the previous one ended.
    fn handle_exit<'a>(&'a mut self, _reason: &'a str) -> GuestCall<'a, ()> {
        GuestCall::done(())
    }

    /// Shut the instance down. Return the writes to host storage.
    fn terminate<'a>(&'a mut self, _reason: &'a str) -> GuestCall<'a, Vec<Item>> {
        GuestCall::done(Vec::new())
    }

    /// Return the number of dots that the vnode has assigned.
    fn dots(&self) -> u64 {
        0
    }

    /// Continue after the dots that a previous instance assigned (R8).
    fn set_dots(&mut self, _dots: u64) {}
}

/// Start an instance of a program, within the time limit if there is one to enforce.
pub(super) async fn start(
    program: &dyn Program,
    config: InstanceConfig<'_>,
) -> Result<Box<dyn Runtime>, GuestError> {
    let limits = (!program.enforces_limits()).then_some(config.limits);
    program.start(config).within(limits).await
}

/// Reject an answer that exceeds the size limit of replies, if there is one to enforce.
pub(super) fn limit_reply<T>(
    limits: Option<Limits>,
    mut answer: Answer<T>,
    what: &'static str,
    length: impl FnOnce(&T) -> usize,
) -> Answer<T> {
    if let Some(Limits { reply_bytes: limit, .. }) = limits {
        let bytes = length(&answer.value);
        if bytes > limit {
            answer.doom.get_or_insert(Doom::TooLarge { what, bytes, limit });
        }
    }
    answer
}
