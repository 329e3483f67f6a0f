//! The runtime between the traits and the contract, used by a component's exports and by the test host.

use crate::bindings::merge::exports::annulus::vnode::merge::{Conflict, Outcome};
use crate::reply::Reply;
use crate::{
    Commands, Config, Coverage, Cursor, Failure, Handoff, Item, Merge, ModuleInfo, Partition, Rejection,
    Request, Values, Version, Vnode, decode_item, encode_item, host,
};

/// Return the description of the module.
#[must_use]
pub fn describe<V: Vnode>() -> ModuleInfo {
    let package = V::Command::PACKAGE;
    ModuleInfo {
        name: V::name(),
        version: V::version(),
        doc: package.doc.to_owned(),
        commands: V::Command::describe(),
        config: V::config(),
        writes_formats: V::WRITES_FORMATS.to_vec(),
        reads_formats: V::READS_FORMATS.to_vec(),
        meta: vec![("sdk".to_owned(), concat!("annulus-guest ", env!("CARGO_PKG_VERSION")).to_owned())],
    }
}

/// Create an instance and initialize it.
///
/// # Errors
/// The error of `Vnode::init`, or the configuration is not a CBOR map.
pub fn init<V: Vnode>(at: Partition, config: &[u8]) -> Result<V, String> {
    host::set_partition(at);
    let mut vnode = V::default();
    vnode.init(Config::decode(config)?)?;
    Ok(vnode)
}

/// Decode and run one command.
///
/// # Errors
/// As for `Vnode::handle_command`; before that, an error of decoding.
pub fn handle_command<V: Vnode>(vnode: &mut V, request: &Request) -> Result<Vec<u8>, Failure> {
    let command = V::Command::decode(&request.command, &request.args)?;
    vnode.handle_command(command).map(Reply::into_bytes)
}

/// Decode a coverage command and run it for one page.
///
/// # Errors
/// As for [`handle_command`].
pub fn handle_coverage<V: Coverage>(vnode: &mut V, request: &Request, at: Cursor) -> Result<Values, Failure> {
    let command = V::Command::decode(&request.command, &request.args)?;
    vnode.handle_coverage(command, at)
}

/// Merge the versions of each conflict. The outcome depends on bytes alone, and the merged state is written
/// in the newer of the two formats, so that replicas that merge the same versions end with the same bytes.
#[must_use]
pub fn merge<V: Merge>(conflicts: Vec<Conflict>) -> Vec<Outcome> {
    conflicts.into_iter().map(|conflict| merge_one::<V>(conflict).unwrap_or_else(Outcome::Rejected)).collect()
}

fn merge_one<V: Merge>(conflict: Conflict) -> Result<Outcome, String> {
    let Conflict { key, sort, local, incoming } = conflict;
    let format = |version: &Version| version.value.first().map_or(0, |format| u32::from(*format));
    let newer = format(&local).max(format(&incoming));
    let local_state = decode_item(&local.value).map_err(|reason| format!("local: {reason}"))?;
    let incoming_state = decode_item(&incoming.value).map_err(|reason| format!("incoming: {reason}"))?;
    let merged = V::merge(&key, &sort, local_state, incoming_state);
    let merged = Version { value: encode_item(&merged, newer), deleted: crate::State::is_deleted(&merged) };
    Ok(if merged == local {
        Outcome::Local
    } else if merged == incoming {
        Outcome::Incoming
    } else {
        Outcome::Merged(merged)
    })
}

/// Merge items into the vnode's state; return the ones that could not be read.
pub fn handle_handoff_data<V: Handoff>(vnode: &mut V, items: Vec<Item>) -> Vec<Rejection> {
    let state = vnode.items();
    let mut rejections = Vec::new();
    for (index, item) in (0..).zip(items) {
        if let Err(reason) = state.handle_handoff_item(item) {
            rejections.push(Rejection { index, reason });
        }
    }
    rejections
}

#[cfg(target_arch = "wasm32")]
pub use component::{Component, Instance};

#[cfg(target_arch = "wasm32")]
mod component {
    //! The exports of a component, for the one instance that it holds.

    use std::cell::RefCell;
    use std::marker::PhantomData;
    use std::thread::LocalKey;

    use crate::bindings::{coverage, exports, handoff, lifecycle, merge, transfer};
    use crate::{
        Budget, Choice, Conflict, Coverage, Cursor, Failure, Handoff, Item, Kind, Lifecycle, Merge,
        ModuleInfo, Outcome, Page, Partition, Rejection, Request, Transfer, Values, Vnode,
    };

    /// The storage of a component's vnode; `export!` implements it.
    pub trait Instance: Vnode {
        /// Return the cell of the instance, which is empty before `init`.
        fn cell() -> &'static LocalKey<RefCell<Option<Self>>>;
    }

    fn with<V: Instance, R>(call: impl FnOnce(&mut V) -> R) -> R {
        V::cell().with_borrow_mut(|vnode| call(vnode.as_mut().expect("the host calls init first")))
    }

    /// The type that `export!` exports.
    pub struct Component<V>(PhantomData<V>);

    impl<V: Instance> exports::annulus::vnode::vnode::Guest for Component<V> {
        fn describe() -> ModuleInfo {
            super::describe::<V>()
        }
        fn init(at: Partition, config: Vec<u8>) -> Result<(), String> {
            let vnode = super::init::<V>(at, &config)?;
            V::cell().set(Some(vnode));
            Ok(())
        }
        fn handle_command(request: Request) -> Result<Vec<u8>, Failure> {
            with::<V, _>(|vnode| super::handle_command(vnode, &request))
        }
    }

    impl<V: Instance + Coverage> coverage::exports::annulus::vnode::coverage::Guest for Component<V> {
        fn handle_coverage(
            request: Request,
            after: Option<Vec<u8>>,
            limit: Budget,
        ) -> Result<Values, Failure> {
            with::<V, _>(|vnode| super::handle_coverage(vnode, &request, Cursor { after, limit }))
        }
    }

    impl<V: Instance + Merge> merge::exports::annulus::vnode::merge::Guest for Component<V> {
        fn merge(conflicts: Vec<Conflict>) -> Vec<Outcome> {
            super::merge::<V>(conflicts)
        }
    }

    impl<V: Instance + Handoff> handoff::exports::annulus::vnode::handoff::Guest for Component<V> {
        fn fold(after: Option<Vec<u8>>, limit: Budget) -> Page {
            with::<V, _>(|vnode| vnode.items().fold(after.as_deref(), limit))
        }
        fn encode_handoff_items(key: Vec<u8>) -> Vec<Item> {
            with::<V, _>(|vnode| vnode.items().encode_handoff_items(&key))
        }
        fn handle_handoff_data(items: Vec<Item>) -> Vec<Rejection> {
            with::<V, _>(|vnode| super::handle_handoff_data(vnode, items))
        }
        fn forget(tombstones: Vec<Item>) {
            with::<V, _>(|vnode| tombstones.iter().for_each(|tombstone| vnode.items().forget(tombstone)));
        }
        fn is_empty() -> bool {
            with::<V, _>(|vnode| vnode.items().is_empty())
        }
        fn count() -> u64 {
            with::<V, _>(|vnode| vnode.items().count())
        }
        fn delete() {
            with::<V, _>(|vnode| vnode.items().delete());
        }
    }

    impl<V: Instance + Transfer> transfer::exports::annulus::vnode::transfer::Guest for Component<V> {
        fn handoff_starting(kind: Kind, target: String) -> bool {
            with::<V, _>(|vnode| vnode.handoff_starting(kind, &target))
        }
        fn handoff_finished(kind: Kind, target: String) {
            with::<V, _>(|vnode| vnode.handoff_finished(kind, &target));
        }
        fn handoff_cancelled(kind: Kind, target: String) {
            with::<V, _>(|vnode| vnode.handoff_cancelled(kind, &target));
        }
        fn handle_handoff_command(request: Request) -> Choice {
            with::<V, _>(|vnode| vnode.handle_handoff_command(&request))
        }
    }

    impl<V: Instance + Lifecycle> lifecycle::exports::annulus::vnode::lifecycle::Guest for Component<V> {
        fn handle_exit(reason: String) {
            with::<V, _>(|vnode| vnode.handle_exit(&reason));
        }
        fn terminate(reason: String) {
            with::<V, _>(|vnode| vnode.terminate(&reason));
        }
    }
}
