//! A running guest and the items of its vnode, in host storage or in the guest's memory.

use annulus_core::contract::{Conflict, MergeOutcome, Partition, Rejection, TransferKind, Values};
use annulus_core::description::CommandInfo;
use annulus_core::item::{Budget, Item, ItemAddr, Page, Version};
use annulus_core::request::Request;

use super::release::Release;
use super::runtime::{CommandResult, InstanceConfig, Runtime, limit_reply, start};
use annulus_storage::{Batch, Items, Selection, StorageError, Writer};
use annulus_wasm::{CallScope, Doom, GuestError, Limits, VnodePlace};

/// An instance with the items of its vnode.
pub(super) struct Guest {
    runtime: Box<dyn Runtime>,
    /// The limits that the vnode enforces, unless the instance does.
    limits: Option<Limits>,
    items: Items,
    /// True if the module has several replicas: a merge needs to know of deletes (R12).
    keeps_tombstones: bool,
}

impl Guest {
    /// Start an instance and call its `init`. It assigns dots after those of `writer`.
    pub(super) async fn start(
        release: &Release,
        partition: Partition,
        writer: Writer,
        items: Items,
    ) -> Result<Self, GuestError> {
        let (module, write_format) = (release.name.clone(), release.write_format);
        let vnode = VnodePlace { module, partition, write_format, actor: writer.actor };
        let limits = release.limits;
        let config = InstanceConfig { vnode, settings: &release.settings, items: items.clone(), limits };
        let mut runtime = start(&*release.program, config).await?;
        runtime.set_dots(writer.dots);
        let limits = (!release.program.enforces_limits()).then_some(limits);
        Ok(Self { runtime, limits, items, keeps_tombstones: release.is_replicated() })
    }

    /// Return the vnode's host storage.
    pub(super) fn items(&self) -> Items {
        self.items.clone()
    }

    /// Return true if the items are in the guest's memory, so that they are lost with the instance.
    pub(super) fn keeps_items(&self) -> bool {
        self.runtime.keeps_items()
    }

    pub(super) fn dots(&self) -> u64 {
        self.runtime.dots()
    }

    /// Continue after the dots that a previous instance assigned (R8).
    pub(super) fn set_dots(&mut self, dots: u64) {
        self.runtime.set_dots(dots);
    }

    /// Run a command. Its writes to host storage are in the answer, not committed yet.
    pub(super) async fn command(
        &mut self,
        info: &CommandInfo,
        id: (u64, u64),
        request: &Request,
    ) -> Result<CommandResult<Vec<u8>>, GuestError> {
        if let Some(instance) = self.runtime.as_component() {
            let scope = CallScope::of_command(info, request.key.as_deref());
            return instance.command(scope, id, request).await;
        }
        let limits = self.limits;
        let result = self.runtime.command(info, id, request).within(limits).await?;
        Ok(result.map(|answer| limit_reply(limits, answer, "the reply", Vec::len)))
    }

    /// Run a page of a coverage command.
    pub(super) async fn coverage(
        &mut self,
        info: &CommandInfo,
        id: (u64, u64),
        request: &Request,
        after: Option<&[u8]>,
        limit: Budget,
    ) -> Result<CommandResult<Values>, GuestError> {
        let limits = self.limits;
        let result = self.runtime.coverage(info, id, request, after, limit).within(limits).await?;
        let length = |page: &Values| page.values.iter().map(|value| value.len() + 5).sum();
        Ok(result.map(|answer| limit_reply(limits, answer, "one page of values", length)))
    }

    /// Apply the writes of a call to host storage.
    pub(super) async fn commit(&mut self, writes: Vec<Item>) -> Result<(), StorageError> {
        if writes.is_empty() {
            return Ok(());
        }
        let changes = writes.into_iter().map(|item| {
            let (addr, version) = item.into_parts();
            (addr, self.stored(version))
        });
        self.items.apply(changes.collect()).await
    }

    /// Return a page of all items in order, tombstones included.
    pub(super) async fn fold(&mut self, after: Option<&[u8]>, limit: Budget) -> Result<Page, GuestError> {
        if !self.keeps_items() {
            return Ok(self.items.page(&Batch::default(), &Selection::ALL, after, limit).await?);
        }
        let page = self.runtime.fold(after, limit).within(self.limits).await?;
        if after.is_some() && page.next.as_deref() == after {
            return Err(GuestError::Doomed(Doom::EndlessFold(
                "a page returns its own token as that of the next page",
            )));
        }
        Ok(page)
    }

    /// Return the approximate number of items in the guest's memory.
    pub(super) async fn count(&mut self) -> Result<u64, GuestError> {
        self.runtime.count().within(self.limits).await
    }

    /// Return the items of one key in the guest's memory.
    pub(super) async fn items_of(&mut self, key: &[u8]) -> Result<Vec<Item>, GuestError> {
        self.runtime.items_of(key).within(self.limits).await
    }

    /// Merge items of another replica. Return the items that were rejected.
    pub(super) async fn take(&mut self, incoming: Vec<Item>) -> Result<Vec<Rejection>, GuestError> {
        if self.keeps_items() {
            let answer = self.runtime.take(&incoming).within(self.limits).await?;
            self.commit(answer.writes).await?;
            return Ok(answer.value);
        }
        let mut changes = Vec::with_capacity(incoming.len());
        let mut conflicts = Vec::new();
        let mut indices = Vec::new();
        for (index, item) in incoming.into_iter().enumerate() {
            let (addr, incoming) = item.into_parts();
            let local = self.items.get(&addr).await?;
            match local {
                Some(local) if local != incoming => {
                    indices.push(index);
                    conflicts.push(Conflict { addr, local, incoming });
                }
                Some(_) => {}
                None => changes.push((addr, self.stored(incoming))),
            }
        }
        let rejections = self.resolve(conflicts, &indices, &mut changes).await?;
        self.items.apply(changes).await?;
        Ok(rejections)
    }

    /// Have the module merge conflicting versions and add the results to `changes`. `indices` are the positions
    /// of the conflicts among the incoming items.
    async fn resolve(
        &mut self,
        conflicts: Vec<Conflict>,
        indices: &[usize],
        changes: &mut Vec<(ItemAddr, Option<Version>)>,
    ) -> Result<Vec<Rejection>, GuestError> {
        debug_assert_eq!(conflicts.len(), indices.len());
        let mut rejections = Vec::new();
        if conflicts.is_empty() {
            return Ok(rejections);
        }
        let outcomes = match self.runtime.merge(&conflicts) {
            Some(call) => call.within(self.limits).await?,
            // Without a merge function the incoming version wins: the stream of the single owner is in commit
            // order, so it is the newer one.
            None => vec![MergeOutcome::Incoming; conflicts.len()],
        };
        for ((Conflict { addr, incoming, .. }, outcome), index) in
            conflicts.into_iter().zip(outcomes).zip(indices)
        {
            match outcome {
                MergeOutcome::Local => {}
                MergeOutcome::Incoming => changes.push((addr, self.stored(incoming))),
                MergeOutcome::Merged(version) => changes.push((addr, self.stored(version))),
                MergeOutcome::Rejected(reason) => {
                    rejections.push(Rejection { index: u32::try_from(*index).unwrap_or(u32::MAX), reason });
                }
            }
        }
        Ok(rejections)
    }

    /// Return the version to store. With a single replica a deleted item is removed at once: only a handoff carries its
    /// tombstone (R12).
    fn stored(&self, version: Version) -> Option<Version> {
        (self.keeps_tombstones || !version.deleted).then_some(version)
    }

    /// Drop tombstones from the guest's memory that replicas no longer need.
    pub(super) async fn forget(&mut self, tombstones: &[Item]) -> Result<(), GuestError> {
        let writes = self.runtime.forget(tombstones).within(self.limits).await?;
        self.commit(writes).await?;
        Ok(())
    }

    /// Return the guest's memory in use and its limit in bytes, if the items are there.
    pub(super) fn memory(&self) -> Option<(usize, usize)> {
        self.runtime.memory()
    }

    /// Return the memory of all guests of the node and their common limit in bytes, if they have one.
    pub(super) fn node_memory(&self) -> Option<(usize, usize)> {
        self.runtime.node_memory()
    }

    pub(super) async fn handoff_starting(
        &mut self,
        kind: TransferKind,
        target: &str,
    ) -> Result<bool, GuestError> {
        self.runtime.handoff_starting(kind, target).within(self.limits).await
    }

    pub(super) async fn handoff_ended(
        &mut self,
        kind: TransferKind,
        target: &str,
        finished: bool,
    ) -> Result<(), GuestError> {
        self.runtime.handoff_ended(kind, target, finished).within(self.limits).await
    }

    pub(super) async fn handles_in_handoff(&mut self, request: &Request) -> Result<bool, GuestError> {
        self.runtime.handles_in_handoff(request).within(self.limits).await
    }

    pub(super) async fn handle_exit(&mut self, reason: &str) -> Result<(), GuestError> {
        self.runtime.handle_exit(reason).within(self.limits).await
    }

    /// Shut the instance down before another one of the same vnode takes over. Commit its last writes and return them.
    pub(super) async fn hand_over(&mut self) -> Result<Vec<Item>, GuestError> {
        let writes = self.runtime.terminate("swap").within(self.limits).await?;
        self.commit(writes.clone()).await?;
        Ok(writes)
    }

    /// Shut the instance down with its vnode, and commit its last writes. With `moved` another node owns the items
    /// permanently: the guest drops those that it keeps, and the last writes are discarded, because those in host storage
    /// are dropped as a whole.
    pub(super) async fn end(&mut self, moved: bool) -> Result<(), GuestError> {
        if moved {
            self.runtime.delete().within(self.limits).await?;
            self.runtime.terminate("moved").within(self.limits).await?;
            return Ok(());
        }
        let writes = self.runtime.terminate("stopped").within(self.limits).await?;
        self.commit(writes).await?;
        Ok(())
    }
}
