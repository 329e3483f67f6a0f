//! Components as [`Program`]s, their instances as [`Runtime`]s.

use std::sync::Arc;

use annulus_core::contract::{Conflict, MergeOutcome, Rejection, TransferKind, Values};
use annulus_core::description::CommandInfo;
use annulus_core::item::{Budget, Item, Page};
use annulus_core::request::Request;
use annulus_wasm::{Answer, CallScope, Instance, Module};

use super::runtime::{CommandResult, GuestCall, InstanceConfig, Program, Runtime};

/// A compiled component.
pub(super) struct Component(pub(super) Arc<Module>);

impl Program for Component {
    fn start<'a>(&'a self, config: InstanceConfig<'a>) -> GuestCall<'a, Box<dyn Runtime>> {
        GuestCall::pending(async move {
            let InstanceConfig { vnode, settings, items, limits } = config;
            let instance = if limits == self.0.limits() {
                Instance::start(&self.0, vnode, items, settings).await?
            } else {
                Instance::start(&self.0.with_limits(limits), vnode, items, settings).await?
            };
            Ok(Box::new(instance) as Box<dyn Runtime>)
        })
    }

    fn enforces_limits(&self) -> bool {
        true
    }
}

impl Runtime for Instance {
    fn as_component(&mut self) -> Option<&mut Instance> {
        Some(self)
    }

    fn command<'a>(
        &'a mut self,
        info: &'a CommandInfo,
        id: (u64, u64),
        request: &'a Request,
    ) -> GuestCall<'a, CommandResult<Vec<u8>>> {
        let scope = CallScope::of_command(info, request.key.as_deref());
        GuestCall::pending(Self::command(self, scope, id, request))
    }

    fn coverage<'a>(
        &'a mut self,
        info: &'a CommandInfo,
        id: (u64, u64),
        request: &'a Request,
        after: Option<&'a [u8]>,
        limit: Budget,
    ) -> GuestCall<'a, CommandResult<Values>> {
        let scope = CallScope::of_command(info, None);
        GuestCall::pending(Self::coverage(self, scope, id, request, after, limit))
    }

    fn keeps_items(&self) -> bool {
        Self::keeps_items(self)
    }

    fn fold<'a>(&'a mut self, after: Option<&'a [u8]>, limit: Budget) -> GuestCall<'a, Page> {
        GuestCall::pending(Self::fold(self, after, limit))
    }

    fn count(&mut self) -> GuestCall<'_, u64> {
        GuestCall::pending(Self::count(self))
    }

    fn items_of<'a>(&'a mut self, key: &'a [u8]) -> GuestCall<'a, Vec<Item>> {
        GuestCall::pending(Self::items_of(self, key))
    }

    fn take<'a>(&'a mut self, items: &'a [Item]) -> GuestCall<'a, Answer<Vec<Rejection>>> {
        GuestCall::pending(self.take_items(items))
    }

    fn merge<'a>(&'a mut self, conflicts: &'a [Conflict]) -> Option<GuestCall<'a, Vec<MergeOutcome>>> {
        self.merges().then(|| {
            GuestCall::pending(async { Self::merge(self, conflicts).await.unwrap_or(Ok(Vec::new())) })
        })
    }

    fn forget<'a>(&'a mut self, tombstones: &'a [Item]) -> GuestCall<'a, Vec<Item>> {
        GuestCall::pending(Self::forget(self, tombstones))
    }

    fn delete(&mut self) -> GuestCall<'_, ()> {
        GuestCall::pending(Self::delete(self))
    }

    fn memory(&self) -> Option<(usize, usize)> {
        Self::keeps_items(self).then(|| (self.memory_bytes(), self.limits().memory_bytes))
    }

    fn node_memory(&self) -> Option<(usize, usize)> {
        Some(Self::node_memory(self))
    }

    fn handoff_starting<'a>(&'a mut self, kind: TransferKind, target: &'a str) -> GuestCall<'a, bool> {
        GuestCall::pending(Self::handoff_starting(self, kind, target))
    }

    fn handoff_ended<'a>(
        &'a mut self,
        kind: TransferKind,
        target: &'a str,
        finished: bool,
    ) -> GuestCall<'a, ()> {
        GuestCall::pending(Self::handoff_ended(self, kind, target, finished))
    }

    fn handles_in_handoff<'a>(&'a mut self, request: &'a Request) -> GuestCall<'a, bool> {
        GuestCall::pending(Self::handles_in_handoff(self, request))
    }

    fn handle_exit<'a>(&'a mut self, reason: &'a str) -> GuestCall<'a, ()> {
        GuestCall::pending(Self::handle_exit(self, reason))
    }

    fn terminate<'a>(&'a mut self, reason: &'a str) -> GuestCall<'a, Vec<Item>> {
        GuestCall::pending(Self::terminate(self, reason))
    }

    fn dots(&self) -> u64 {
        Self::dots(self)
    }

    fn set_dots(&mut self, dots: u64) {
        Self::set_dots(self, dots);
    }
}
