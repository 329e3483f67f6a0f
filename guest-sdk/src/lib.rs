//! Write Annulus vnodes in Rust: an enum of commands, a `match`, and [`export!`].
//!
//! ```
//! use annulus_guest::prelude::*;
//!
//! #[derive(Default)]
//! struct Ping;
//!
//! #[derive(Commands)]
//! enum Command {
//!     /// Return the partition that was asked.
//!     Ping,
//! }
//!
//! impl Vnode for Ping {
//!     type Command = Command;
//!     fn handle_command(&mut self, Command::Ping: Command) -> Result<Reply, Failure> {
//!         reply(("pong", host::partition().id))
//!     }
//! }
//!
//! export!(Ping);
//! ```
//!
//! A module must implement [`Vnode`]. Everything else is optional and named in [`export!`], one trait for
//! each interface of the contract (`wit/vnode.wit`): [`Coverage`], [`Merge`] or [`Handoff`], [`Transfer`],
//! [`Lifecycle`]. State is kept by the host in [`storage`], or by the guest in a [`Table`]. [`Latest`] is the
//! simplest value that replicas can merge.
//!
//! On targets other than wasm32 the same code runs in a plain `cargo test`, against the host of [`testing`].

// The derive refers to `::annulus_guest`, in this crate's own examples and tests too.
extern crate self as annulus_guest;

#[doc(hidden)]
pub mod bindings;
mod command;
mod config;
mod coverage;
mod export;
pub mod host;
mod reply;
#[doc(hidden)]
pub mod rt;
mod state;
pub mod storage;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod vnode;

pub use annulus_guest_derive::Commands;
pub use bindings::annulus::vnode::log::Level;
pub use bindings::annulus::vnode::types::{
    Budget, Dot, Failure, Item, Page, Partition, Refusal, Request, Version,
};
pub use bindings::coverage::exports::annulus::vnode::coverage::Values;
pub use bindings::exports::annulus::vnode::vnode::{CommandInfo, Effect, ModuleInfo, Param, Route};
pub use bindings::handoff::exports::annulus::vnode::handoff::Rejection;
pub use bindings::merge::exports::annulus::vnode::merge::{Conflict, Outcome};
pub use bindings::transfer::exports::annulus::vnode::transfer::{Choice, Kind};
pub use ciborium::Value;
pub use command::{Commands, Package};
pub use config::Config;
pub use coverage::{Cursor, Emit};
pub use reply::{Reply, reply};
pub use serde_bytes::ByteBuf;
pub use state::{Items, Latest, State, Table, decode_item, encode_item};
pub use vnode::{Coverage, Handoff, Lifecycle, Merge, Transfer, Vnode};

/// Items that the code of the derive refers to; not part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::command::{check, decode_args};
    pub use {serde, serde_bytes};
}

/// The imports of a guest's source: `use annulus_guest::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Budget, ByteBuf, Commands, Config, Coverage, Cursor, Dot, Emit, Failure, Handoff, Item, Items,
        Latest, Lifecycle, Merge, Page, Param, Partition, Reply, State, Table, Transfer, Value, Values,
        Vnode, debug, error, export, host, info, reply, storage, warn,
    };
}
