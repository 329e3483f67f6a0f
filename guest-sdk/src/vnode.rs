//! One trait for each interface that a component may export. [`export!`](crate::export) says which.

use crate::bindings::exports::annulus::vnode::vnode::Param;
use crate::{Choice, Commands, Config, Cursor, Failure, Items, Kind, Reply, Request, State, Values};

/// What every module is: commands, and what they do. The host makes one instance for each
/// partition by `Default`, then calls [`init`](Vnode::init).
pub trait Vnode: Default + 'static {
    /// The commands, an enum that derives [`Commands`](derive@crate::Commands).
    type Command: Commands;

    /// The formats of items that this version can write, the newest last.
    const WRITES_FORMATS: &'static [u32] = &[1];
    /// All formats of items that this version can read and merge.
    const READS_FORMATS: &'static [u32] = &[1];

    /// The module's name: by default the Cargo package's.
    fn name() -> String {
        Self::Command::PACKAGE.name.to_owned()
    }

    /// This version's name, for people: by default the Cargo package's version.
    fn version() -> String {
        Self::Command::PACKAGE.version.to_owned()
    }

    /// The settings that `deploy --set name=value` takes.
    fn config() -> Vec<Param> {
        Vec::new()
    }

    /// First call on each new instance. An error at a deploy refuses it. It may read storage, which has the
    /// items of the instance before it, and must not write there.
    ///
    /// # Errors
    /// What the operator should read.
    fn init(&mut self, config: Config) -> Result<(), String> {
        let _ = config;
        Ok(())
    }

    /// Runs one command.
    ///
    /// # Errors
    /// A [`Failure`] says that nothing was changed. The host drops the call's writes to storage;
    /// what it changed in its own memory the guest must take back itself.
    fn handle_command(&mut self, command: Self::Command) -> Result<Reply, Failure>;
}

/// Commands that every partition answers (`#[command(everywhere)]`).
pub trait Coverage: Vnode {
    /// One page of this partition's answer; [`Table::each`](crate::Table::each) and
    /// [`storage::each`](crate::storage::each) do the paging.
    ///
    /// # Errors
    /// As [`Vnode::handle_command`].
    fn handle_coverage(&mut self, command: Self::Command, at: Cursor) -> Result<Values, Failure>;
}

/// How two versions of one stored item become one. From this the host makes replication, repair,
/// rebalancing, swap and backup of modules whose state is in [`storage`](crate::storage).
pub trait Merge: Vnode {
    /// What an item holds.
    type State: State;

    /// The two as one: commutative, associative, idempotent, and calling nothing of the host.
    fn merge(key: &[u8], sort: &[u8], local: Self::State, incoming: Self::State) -> Self::State {
        let _ = (key, sort);
        local.merge(incoming)
    }
}

/// For modules that keep their items themselves: riak_core's fold, encode_handoff_item,
/// handle_handoff_data, is_empty and delete, all from one [`Items`], such as a
/// [`Table`](crate::Table).
pub trait Handoff: Vnode {
    /// The state, as items.
    fn items(&mut self) -> &mut dyn Items;
}

/// A say in handoffs. The defaults are what happens without it. Nothing here may write to storage: such
/// a call counts as not made.
pub trait Transfer: Vnode {
    /// False puts the handoff off; it is tried again later.
    fn handoff_starting(&mut self, kind: Kind, target: &str) -> bool {
        let _ = (kind, target);
        true
    }
    /// All items are at `target`.
    fn handoff_finished(&mut self, kind: Kind, target: &str) {
        let _ = (kind, target);
    }
    /// The handoff came to nothing; this vnode stays.
    fn handoff_cancelled(&mut self, kind: Kind, target: &str) {
        let _ = (kind, target);
    }
    /// Asked before each command while this vnode hands off.
    fn handle_handoff_command(&mut self, request: &Request) -> Choice {
        let _ = request;
        Choice::Handle
    }
}

/// The ends of instances.
pub trait Lifecycle: Vnode {
    /// To a new instance, after `init`: the one before it trapped or ran out of time. Must not write to
    /// storage.
    fn handle_exit(&mut self, reason: &str) {
        let _ = reason;
    }
    /// Before an orderly end: stop, swap, move. What it writes to storage is kept.
    fn terminate(&mut self, reason: &str) {
        let _ = reason;
    }
}
