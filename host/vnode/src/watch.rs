//! What vnodes of components do, for whoever holds a simulation to its rules.

use std::sync::Arc;

use annulus_core::ids::{ModuleUid, RequestId};
use annulus_core::keyspace::PartitionId;
use annulus_wasm::{Answer, CommandFailure, CommandInfo, GuestError};

use super::actor::Actor;

/// Sees what vnodes do while they do it. Whose node it is says the present [`annulus_ground::Scope`].
pub trait Watcher: Send + Sync + 'static {
    /// A guest came back from a command that goes to one vnode. Nothing has been awaited since.
    fn ran(&self, ran: &Ran<'_>);

    /// A vnode's guest ended, and the items that it kept in its memory went with it.
    fn lost(&self, vnode: &WatchedVnode<'_>);
}

/// Which vnode it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedVnode<'a> {
    /// The module's name.
    pub name: &'a str,
    /// Which of the modules that have had this name.
    pub module: ModuleUid,
    /// The partition.
    pub partition: PartitionId,
}

/// A command that a guest ran to its end.
#[derive(Clone, Copy, Debug)]
pub struct Ran<'a> {
    /// By which vnode.
    pub vnode: WatchedVnode<'a>,
    /// What it is.
    pub info: &'a CommandInfo,
    /// The same when it is sent again.
    pub id: RequestId,
    /// Its reply. None if it broke a rule of the contract and has done to the items in its memory what it did.
    pub reply: Option<&'a [u8]>,
}

impl Actor {
    fn watched(&self, watch: impl FnOnce(&dyn Watcher, WatchedVnode<'_>)) {
        let Some(watcher) = &self.behaviour.watcher else { return };
        let Ok(partition) = u16::try_from(self.partition.id).map(PartitionId) else { return };
        watch(&**watcher, WatchedVnode { name: &self.behaviour.name, module: self.module, partition });
    }

    /// A command came back from the guest: what it changed is there, or will be when it is committed.
    pub(super) fn watch_command(
        &self,
        info: &CommandInfo,
        id: (u64, u64),
        called: &Result<Result<Answer<Vec<u8>>, CommandFailure>, GuestError>,
    ) {
        let Ok(Ok(answer)) = called else { return };
        let keeps = self.guest.as_ref().is_some_and(super::guest::Guest::keeps_items);
        if answer.doom.is_some() && !keeps {
            return;
        }
        self.watched(|watcher, vnode| {
            let id = RequestId((u128::from(id.0) << 64 | u128::from(id.1)).to_be_bytes());
            let reply = answer.doom.is_none().then_some(&answer.value[..]);
            watcher.ran(&Ran { vnode, info, id, reply });
        });
    }

    /// The guest ended, and its items with it.
    pub(super) fn watch_loss(&self) {
        self.watched(|watcher, vnode| watcher.lost(&vnode));
    }
}

/// Who watches the vnodes of a component, if anybody does.
pub(super) type Watched = Option<Arc<dyn Watcher>>;
