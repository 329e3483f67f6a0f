//! The traits of a vnode, one for each interface that a component may export. [`export!`](crate::export)
//! selects them.

use crate::bindings::exports::annulus::vnode::vnode::Param;
use crate::{Choice, Commands, Config, Cursor, Failure, Items, Kind, Reply, Request, State, Values};

/// A module's commands and their implementation; every module has one. The host creates one instance for each
/// partition by `Default`, then calls [`init`](Vnode::init).
pub trait Vnode: Default + 'static {
    /// The commands, an enum that derives [`Commands`](derive@crate::Commands).
    type Command: Commands;

    /// The formats of items that this version can write, the newest last.
    const WRITES_FORMATS: &'static [u32] = &[1];
    /// All formats of items that this version can read and merge.
    const READS_FORMATS: &'static [u32] = &[1];

    /// Return the module's name; by default the Cargo package's.
    fn name() -> String {
        Self::Command::PACKAGE.name.to_owned()
    }

    /// Return the name of this version, for people; by default the Cargo package's version.
    fn version() -> String {
        Self::Command::PACKAGE.version.to_owned()
    }

    /// Return the settings that `deploy --set name=value` takes.
    fn config() -> Vec<Param> {
        Vec::new()
    }

    /// Initialize a new instance. This is the first call that the instance gets. An error during a deploy
    /// refuses the deploy. The method may read storage, which has the items of the previous instance, and must
    /// not write there.
    ///
    /// # Errors
    /// A message for the operator.
    fn init(&mut self, config: Config) -> Result<(), String> {
        let _ = config;
        Ok(())
    }

    /// Run one command.
    ///
    /// # Errors
    /// A [`Failure`] means that nothing was changed. The host drops the call's writes to storage; the guest
    /// must itself undo the changes to its memory.
    fn handle_command(&mut self, command: Self::Command) -> Result<Reply, Failure>;
}

/// Commands that every partition answers (`#[command(everywhere)]`).
pub trait Coverage: Vnode {
    /// Return one page of this partition's values. [`Table::each`](crate::Table::each) and
    /// [`storage::each`](crate::storage::each) do the paging.
    ///
    /// # Errors
    /// As for [`Vnode::handle_command`].
    fn handle_coverage(&mut self, command: Self::Command, at: Cursor) -> Result<Values, Failure>;
}

/// Merges two versions of a stored item. With it the host implements replication, repair, rebalancing, swap
/// and backup of modules whose state is in [`storage`](crate::storage).
pub trait Merge: Vnode {
    /// The state that an item holds.
    type State: State;

    /// Merge two states: commutative, associative, idempotent, and without calls of host functions.
    fn merge(key: &[u8], sort: &[u8], local: Self::State, incoming: Self::State) -> Self::State {
        let _ = (key, sort);
        local.merge(incoming)
    }
}

/// For modules that keep their items themselves: riak_core's fold, encode_handoff_item, handle_handoff_data,
/// is_empty and delete, all from one [`Items`], such as a [`Table`](crate::Table).
pub trait Handoff: Vnode {
    /// Return the state as items.
    fn items(&mut self) -> &mut dyn Items;
}

/// Takes part in handoffs. The default methods do what the host does for modules without this trait. The
/// methods must not write to storage: if one does, the host treats its call as not made.
pub trait Transfer: Vnode {
    /// Decide whether a handoff may start. False postpones it; the host tries again later.
    fn handoff_starting(&mut self, kind: Kind, target: &str) -> bool {
        let _ = (kind, target);
        true
    }
    /// Called when all items have arrived at `target`.
    fn handoff_finished(&mut self, kind: Kind, target: &str) {
        let _ = (kind, target);
    }
    /// Called when the handoff was cancelled; this vnode stays.
    fn handoff_cancelled(&mut self, kind: Kind, target: &str) {
        let _ = (kind, target);
    }
    /// Decide what happens to a command while this vnode is handed off; called before each one.
    fn handle_handoff_command(&mut self, request: &Request) -> Choice {
        let _ = request;
        Choice::Handle
    }
}

/// Notifications of the end of instances.
pub trait Lifecycle: Vnode {
    /// Called on the new instance after `init`, if the previous instance trapped or ran out of time. The method
    /// must not write to storage.
    fn handle_exit(&mut self, reason: &str) {
        let _ = reason;
    }
    /// Called when the instance ends in an orderly way: stop, swap or move. Its writes to storage are kept.
    fn terminate(&mut self, reason: &str) {
        let _ = reason;
    }
}
