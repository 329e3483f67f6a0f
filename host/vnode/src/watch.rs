//! Reports of the commands that vnodes run, for the checks of a simulation.

use std::sync::Arc;

use annulus_core::description::CommandInfo;
use annulus_core::ids::{ModuleUid, RequestId};
use annulus_core::keyspace::PartitionId;

/// Sees the commands of vnodes as they happen. The current [`annulus_ground::Scope`] identifies the node.
pub trait Watcher: Send + Sync + 'static {
    /// Called when a guest has returned from a command for a single vnode, with no await in between.
    fn ran(&self, ran: &Ran<'_>);

    /// Called when a vnode's guest has ended and the items in its memory are lost.
    fn lost(&self, vnode: &WatchedVnode<'_>);
}

/// Identifies a vnode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedVnode<'a> {
    /// Name of the module.
    pub name: &'a str,
    /// Unique id of the module, unlike the name.
    pub module: ModuleUid,
    /// The partition.
    pub partition: PartitionId,
}

/// A command that a guest ran to its end.
#[derive(Clone, Copy, Debug)]
pub struct Ran<'a> {
    /// The vnode.
    pub vnode: WatchedVnode<'a>,
    /// Description of the command.
    pub info: &'a CommandInfo,
    /// Identifies the request; a retry has the same id.
    pub id: RequestId,
    /// The reply. `None` if the command broke a rule of the contract; its changes to items in the guest's memory
    /// remain.
    pub reply: Option<&'a [u8]>,
}

/// The watcher of a release's vnodes, if there is one.
pub(super) type Watched = Option<Arc<dyn Watcher>>;
