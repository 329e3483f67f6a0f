//! What a vnode runs, and the items that it has, whoever keeps them.

use std::sync::Arc;

use parking_lot::RwLock;

use super::loader::Prepared;
use super::native::{Answered, Native, NativeModule, NativePlace};
use super::watch::Watched;
use annulus_storage::{Memory, Place, Storage, Stored};
use annulus_wasm::{
    Answer, Budget, CallScope, CommandInfo, Conflict, Description, Doom, GuestError, Instance, Item, Limits,
    MergeOutcome, Module, Page, Partition, Rejection, Request, TransferKind, Values, Version, VnodePlace,
};

/// A module as its vnodes run it: one release with its settings.
pub struct Behaviour {
    /// The module's name.
    pub name: Arc<str>,
    /// Counts the module's releases; 0 for native code.
    pub version: u64,
    /// What the release says of itself.
    pub description: Arc<Description>,
    /// CBOR map for `init`.
    config: Vec<u8>,
    /// What its guest is told to write its items in.
    write_format: u32,
    code: Code,
    /// Who sees what its vnodes do, in a simulation.
    pub(super) watcher: Watched,
}

#[derive(Clone)]
pub(super) enum Code {
    Wasm(Arc<Module>),
    Native(Arc<dyn NativeModule>, Limits),
}

impl Behaviour {
    /// A component's.
    pub fn of(name: Arc<str>, version: u64, prepared: Prepared, config: Vec<u8>) -> Self {
        let Prepared { description, code, watcher, .. } = prepared;
        let write_format = description.writes_formats.iter().copied().max().unwrap_or(1);
        Self { name, version, description, config, write_format, code, watcher }
    }

    /// That of a component that runs as WebAssembly.
    pub fn wasm(name: Arc<str>, version: u64, module: Arc<Module>, config: Vec<u8>) -> Self {
        Self::of(name, version, Prepared::wasm(module), config)
    }

    /// The same, with its items written in this format instead of the newest that it can write.
    pub fn writing(self, write_format: u32) -> Self {
        Self { write_format, ..self }
    }

    /// That of a module which is no component.
    pub(super) fn native(name: Arc<str>, description: Description, module: Arc<dyn NativeModule>) -> Self {
        let code = Code::Native(module, Limits::default());
        Self {
            name,
            version: 0,
            description: Arc::new(description),
            config: Vec::new(),
            write_format: 1,
            code,
            watcher: None,
        }
    }
}

/// The items of one vnode that the host keeps; they outlive the guest's instances.
pub(super) type Items = Arc<RwLock<Memory>>;

/// A running guest with its vnode's items.
pub(super) struct Guest {
    code: Running,
    items: Items,
}

enum Running {
    Wasm(Box<Instance>),
    Native(Native),
}

impl Guest {
    /// Makes an instance and gives it its place and settings. `dots` go on from there.
    pub(super) async fn start(
        behaviour: Arc<Behaviour>,
        partition: Partition,
        actor: u64,
        dots: u64,
        items: Items,
    ) -> Result<Self, GuestError> {
        let write_format = behaviour.write_format;
        let place = VnodePlace { module: behaviour.name.clone(), partition, write_format, actor };
        let code = match &behaviour.code {
            Code::Native(module, limits) => {
                let (config, items, limits) = (&behaviour.config[..], items.clone(), *limits);
                let place = NativePlace { vnode: place, config, items, limits };
                let mut native = Native::start(&**module, place).await?;
                native.guest_mut().set_dots(dots);
                Running::Native(native)
            }
            Code::Wasm(module) => {
                let mut instance = Instance::start(module, place, items.clone(), &behaviour.config).await?;
                instance.set_dots(dots);
                Running::Wasm(Box::new(instance))
            }
        };
        Ok(Self { code, items })
    }

    /// The items that the host keeps for it.
    pub(super) fn items(&self) -> Items {
        self.items.clone()
    }

    /// Are its items in its own memory, so that they end with the instance?
    pub(super) fn keeps_items(&self) -> bool {
        match &self.code {
            Running::Wasm(instance) => instance.keeps_items(),
            Running::Native(native) => native.guest().keeps_items(),
        }
    }

    pub(super) fn dots(&self) -> u64 {
        match &self.code {
            Running::Wasm(instance) => instance.dots(),
            Running::Native(native) => native.guest().dots(),
        }
    }

    /// Goes on after the dots that an instance before this one gave (R8).
    pub(super) fn set_dots(&mut self, dots: u64) {
        match &mut self.code {
            Running::Wasm(instance) => instance.set_dots(dots),
            Running::Native(native) => native.guest_mut().set_dots(dots),
        }
    }

    /// Runs one command; its writes to host storage are still to be applied.
    pub(super) async fn command(
        &mut self,
        info: &CommandInfo,
        id: (u64, u64),
        request: &Request,
    ) -> Result<Answered<Vec<u8>>, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => {
                let scope = CallScope::of_command(info, request.key.as_deref());
                instance.command(scope, id, request).await
            }
            Running::Native(native) => {
                native.answer("the reply", Vec::len, |guest| guest.command(info, id, request)).await
            }
        }
    }

    /// One page of a command that goes everywhere.
    pub(super) async fn coverage(
        &mut self,
        info: &CommandInfo,
        id: (u64, u64),
        request: &Request,
        after: Option<&[u8]>,
        limit: Budget,
    ) -> Result<Answered<Values>, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => {
                instance.coverage(CallScope::of_command(info, None), id, request, after, limit).await
            }
            Running::Native(native) => {
                let length = |page: &Values| page.values.iter().map(|value| value.len() + 5).sum();
                let call = native.answer("one page of values", length, |guest| {
                    guest.coverage(info, id, request, after, limit)
                });
                call.await
            }
        }
    }

    /// Applies a call's writes to host storage and answers them as items. With one replica a
    /// deleted item is gone at once: its tombstone only travels (R12).
    pub(super) fn commit(&self, writes: Vec<(Place, Stored)>) -> Vec<Item> {
        if writes.is_empty() {
            return Vec::new();
        }
        let items = writes
            .iter()
            .map(|((key, sort), stored)| Item {
                key: key.clone(),
                sort: sort.clone(),
                value: stored.value.clone(),
                deleted: stored.deleted,
            })
            .collect();
        let changes =
            writes.into_iter().map(|(place, stored)| (place, (!stored.deleted).then_some(stored))).collect();
        self.items.write().apply(changes);
        items
    }

    /// One page of all items, tombstones too, in order.
    pub(super) async fn fold(&mut self, after: Option<&[u8]>, limit: Budget) -> Result<Page, GuestError> {
        if !self.keeps_items() {
            return Ok(annulus_wasm::page_of_all(&*self.items.read(), after, limit));
        }
        let page = match &mut self.code {
            Running::Wasm(instance) => instance.fold(after, limit).await?,
            Running::Native(native) => native.call(|guest| guest.fold(after, limit)).await?,
        };
        if after.is_some() && page.next.as_deref() == after {
            return Err(GuestError::Doomed(Doom::EndlessFold("the next page is the same again")));
        }
        Ok(page)
    }

    /// How many items the guest keeps itself, roughly.
    pub(super) async fn count(&mut self) -> Result<u64, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.count().await,
            Running::Native(native) => native.call(|guest| guest.count()).await,
        }
    }

    /// The items of one key that the guest keeps itself.
    pub(super) async fn items_of(&mut self, key: &[u8]) -> Result<Vec<Item>, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.items_of(key).await,
            Running::Native(native) => native.call(|guest| guest.items_of(key)).await,
        }
    }

    /// Merges items from elsewhere; answers those that could not be taken.
    pub(super) async fn take(&mut self, incoming: Vec<Item>) -> Result<Vec<Rejection>, GuestError> {
        if self.keeps_items() {
            let Answer { value, writes, .. } = match &mut self.code {
                Running::Wasm(instance) => instance.take_items(&incoming).await?,
                Running::Native(native) => native.call(|guest| guest.take(&incoming)).await?,
            };
            self.commit(writes);
            return Ok(value);
        }
        let mut changes = Vec::with_capacity(incoming.len());
        let mut conflicts = Vec::new();
        let mut at = Vec::new();
        for (index, item) in incoming.into_iter().enumerate() {
            let place = (item.key, item.sort);
            let incoming = Version { value: item.value, deleted: item.deleted };
            let local = self.items.read().get(&place);
            match local {
                Some(local) if local.value != incoming.value || local.deleted != incoming.deleted => {
                    let local = Version { value: local.value, deleted: local.deleted };
                    at.push(index);
                    conflicts.push(Conflict { key: place.0, sort: place.1, local, incoming });
                }
                Some(_) => {}
                None => changes.push((place, stored(incoming))),
            }
        }
        let mut rejections = Vec::new();
        if !conflicts.is_empty() {
            // Without `merge` items are copied as they are: the stream of the one holder is
            // in commit order, so what comes is newer.
            let outcomes = match self.merge(&conflicts).await? {
                Some(outcomes) => outcomes,
                None => vec![MergeOutcome::Incoming; conflicts.len()],
            };
            for ((conflict, outcome), index) in conflicts.into_iter().zip(outcomes).zip(at) {
                let place = (conflict.key, conflict.sort);
                match outcome {
                    MergeOutcome::Local => {}
                    MergeOutcome::Incoming => changes.push((place, stored(conflict.incoming))),
                    MergeOutcome::Merged(version) => changes.push((place, stored(version))),
                    MergeOutcome::Rejected(reason) => {
                        rejections
                            .push(Rejection { index: u32::try_from(index).unwrap_or(u32::MAX), reason });
                    }
                }
            }
        }
        self.items.write().apply(changes);
        Ok(rejections)
    }

    async fn merge(&mut self, conflicts: &[Conflict]) -> Result<Option<Vec<MergeOutcome>>, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.merge(conflicts).await.transpose(),
            Running::Native(native) => native.merge(conflicts).await.transpose(),
        }
    }

    /// Tells a guest that keeps its items which tombstones no replica needs any more.
    pub(super) async fn forget(&mut self, tombstones: &[Item]) -> Result<(), GuestError> {
        let writes = match &mut self.code {
            Running::Wasm(instance) => instance.forget(tombstones).await?,
            Running::Native(native) => native.call(|guest| guest.forget(tombstones)).await?,
        };
        self.commit(writes);
        Ok(())
    }

    /// Lets go of all items.
    pub(super) async fn delete(&mut self) -> Result<(), GuestError> {
        let deleted = match &mut self.code {
            Running::Wasm(instance) => instance.delete().await,
            Running::Native(native) => native.call(|guest| guest.delete()).await,
        };
        *self.items.write() = Memory::default();
        deleted
    }

    /// The guest's memory in bytes, and how much it may have, where it keeps its items there: it is then
    /// refused writes before it has so much that one more would end it.
    pub(super) fn memory(&self) -> Option<(usize, usize)> {
        match &self.code {
            Running::Wasm(instance) if instance.keeps_items() => {
                Some((instance.memory_bytes(), instance.limits().memory_bytes))
            }
            Running::Wasm(_) => None,
            Running::Native(native) => native.guest().memory(),
        }
    }

    pub(super) async fn handoff_starting(
        &mut self,
        kind: TransferKind,
        target: &str,
    ) -> Result<bool, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.handoff_starting(kind, target).await,
            Running::Native(native) => native.call(|guest| guest.handoff_starting(kind, target)).await,
        }
    }

    pub(super) async fn handoff_ended(
        &mut self,
        kind: TransferKind,
        target: &str,
        finished: bool,
    ) -> Result<(), GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.handoff_ended(kind, target, finished).await,
            Running::Native(native) => native.call(|guest| guest.handoff_ended(kind, target, finished)).await,
        }
    }

    pub(super) async fn handles_in_handoff(&mut self, request: &Request) -> Result<bool, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.handles_in_handoff(request).await,
            Running::Native(native) => native.call(|guest| guest.handles_in_handoff(request)).await,
        }
    }

    pub(super) async fn handle_exit(&mut self, reason: &str) -> Result<(), GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.handle_exit(reason).await,
            Running::Native(native) => native.call(|guest| guest.handle_exit(reason)).await,
        }
    }

    /// The orderly end of an instance; its last writes are kept, and answered as items.
    pub(super) async fn terminate(&mut self, reason: &str) -> Result<Vec<Item>, GuestError> {
        let writes = match &mut self.code {
            Running::Wasm(instance) => instance.terminate(reason).await?,
            Running::Native(native) => native.call(|guest| guest.terminate(reason)).await?,
        };
        Ok(self.commit(writes))
    }
}

fn stored(version: Version) -> Option<Stored> {
    (!version.deleted).then_some(Stored { value: version.value, deleted: false })
}
