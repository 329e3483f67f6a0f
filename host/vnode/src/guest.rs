//! What a vnode runs, and the items that it has, whoever keeps them.

use std::sync::Arc;

use parking_lot::RwLock;

use super::native::NativeKv;
use annulus_storage::{Memory, Place, Storage, Stored};
use annulus_wasm::{
    Answer, Budget, CallScope, CommandFailure, CommandInfo, Conflict, Description, GuestError, Instance,
    Item, MergeOutcome, Module, Page, Partition, Rejection, Request, TransferKind, Values, Version,
    VnodePlace,
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
}

enum Code {
    Wasm(Arc<Module>),
    Native,
}

impl Behaviour {
    /// A component's.
    pub fn wasm(name: Arc<str>, version: u64, module: Arc<Module>, config: Vec<u8>) -> Self {
        let description = module.description.clone();
        let write_format = description.writes_formats.iter().copied().max().unwrap_or(1);
        Self { name, version, description, config, write_format, code: Code::Wasm(module) }
    }

    /// The same, with its items written in this format instead of the newest that it can write.
    pub fn writing(self, write_format: u32) -> Self {
        Self { write_format, ..self }
    }

    pub(super) fn native(name: Arc<str>, description: Description) -> Self {
        Self {
            name,
            version: 0,
            description: Arc::new(description),
            config: Vec::new(),
            write_format: 1,
            code: Code::Native,
        }
    }

    /// The component's digest; none for native code.
    pub fn digest(&self) -> Option<annulus_core::ids::Digest> {
        match &self.code {
            Code::Wasm(module) => Some(module.digest),
            Code::Native => None,
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
    Native(NativeKv),
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
        let code = match &behaviour.code {
            Code::Native => Running::Native(NativeKv::default()),
            Code::Wasm(module) => {
                let write_format = behaviour.write_format;
                let place = VnodePlace { module: behaviour.name.clone(), partition, write_format, actor };
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
            Running::Native(_) => true,
        }
    }

    pub(super) fn dots(&self) -> u64 {
        match &self.code {
            Running::Wasm(instance) => instance.dots(),
            Running::Native(_) => 0,
        }
    }

    pub(super) fn set_dots(&mut self, dots: u64) {
        if let Running::Wasm(instance) = &mut self.code {
            instance.set_dots(dots);
        }
    }

    /// Runs one command; its writes to host storage are still to be applied.
    pub(super) async fn command(
        &mut self,
        info: &CommandInfo,
        id: (u64, u64),
        request: &Request,
    ) -> Result<Result<Answer<Vec<u8>>, CommandFailure>, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => {
                let scope = CallScope::of_command(info, request.key.as_deref());
                instance.command(scope, id, request).await
            }
            Running::Native(kv) => {
                Ok(kv.command(request).map(|value| Answer { value, writes: Vec::new(), doom: None }))
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
    ) -> Result<Result<Answer<Values>, CommandFailure>, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => {
                instance.coverage(CallScope::of_command(info, None), id, request, after, limit).await
            }
            Running::Native(_) => Ok(Err(CommandFailure::UnknownCommand)),
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
        match &mut self.code {
            Running::Wasm(instance) if instance.keeps_items() => instance.fold(after, limit).await,
            Running::Wasm(_) => Ok(annulus_wasm::page_of_all(&*self.items.read(), after, limit)),
            Running::Native(_) => Ok(Page { items: Vec::new(), next: None }),
        }
    }

    /// How many items the guest keeps itself, roughly.
    pub(super) async fn count(&mut self) -> Result<u64, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.count().await,
            Running::Native(_) => Ok(0),
        }
    }

    /// The items of one key that the guest keeps itself.
    pub(super) async fn items_of(&mut self, key: &[u8]) -> Result<Vec<Item>, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.items_of(key).await,
            Running::Native(_) => Ok(Vec::new()),
        }
    }

    /// Merges items from elsewhere; answers those that could not be taken.
    pub(super) async fn take(&mut self, incoming: Vec<Item>) -> Result<Vec<Rejection>, GuestError> {
        let Running::Wasm(instance) = &mut self.code else { return Ok(Vec::new()) };
        if instance.keeps_items() {
            let Answer { value, writes, .. } = instance.take_items(&incoming).await?;
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
            let outcomes = match instance.merge(&conflicts).await {
                Some(outcomes) => outcomes?,
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

    /// Tells a guest that keeps its items which tombstones no replica needs any more.
    pub(super) async fn forget(&mut self, tombstones: &[Item]) -> Result<(), GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => {
                let writes = instance.forget(tombstones).await?;
                self.commit(writes);
                Ok(())
            }
            Running::Native(_) => Ok(()),
        }
    }

    /// Lets go of all items.
    pub(super) async fn delete(&mut self) -> Result<(), GuestError> {
        let deleted = match &mut self.code {
            Running::Wasm(instance) => instance.delete().await,
            Running::Native(_) => Ok(()),
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
            Running::Wasm(_) | Running::Native(_) => None,
        }
    }

    pub(super) async fn handoff_starting(
        &mut self,
        kind: TransferKind,
        target: &str,
    ) -> Result<bool, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.handoff_starting(kind, target).await,
            Running::Native(_) => Ok(true),
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
            Running::Native(_) => Ok(()),
        }
    }

    pub(super) async fn handles_in_handoff(&mut self, request: &Request) -> Result<bool, GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.handles_in_handoff(request).await,
            Running::Native(_) => Ok(true),
        }
    }

    pub(super) async fn handle_exit(&mut self, reason: &str) -> Result<(), GuestError> {
        match &mut self.code {
            Running::Wasm(instance) => instance.handle_exit(reason).await,
            Running::Native(_) => Ok(()),
        }
    }

    /// The orderly end of an instance; its last writes are kept, and answered as items.
    pub(super) async fn terminate(&mut self, reason: &str) -> Result<Vec<Item>, GuestError> {
        let Running::Wasm(instance) = &mut self.code else { return Ok(Vec::new()) };
        let writes = instance.terminate(reason).await?;
        Ok(self.commit(writes))
    }
}

fn stored(version: Version) -> Option<Stored> {
    (!version.deleted).then_some(Stored { value: version.value, deleted: false })
}
