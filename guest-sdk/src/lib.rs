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
//!     /// Answers with the partition that was asked.
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
//! [`Vnode`] is all that a module must have. What else it can do it names in [`export!`], one trait
//! per interface of the contract (`wit/vnode.wit`): [`Coverage`], [`Merge`] or [`Handoff`],
//! [`Transfer`], [`Lifecycle`]. State lives in [`storage`], kept by the host, or in a [`Table`] of
//! the guest's own; [`Latest`] is the simplest value that replicas can merge.
//!
//! Off wasm the same code runs in a plain `cargo test`, against the host of [`testing`].

// So that the derive can say `::annulus_guest` in this crate's own examples and tests too.
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

/// What the derive's code refers to; no part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::command::{check, decode_args};
    pub use {serde, serde_bytes};
}

/// What a guest's source begins with: `use annulus_guest::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Budget, ByteBuf, Commands, Config, Coverage, Cursor, Dot, Emit, Failure, Handoff, Item, Items,
        Latest, Lifecycle, Merge, Page, Param, Partition, Reply, State, Table, Transfer, Value, Values,
        Vnode, debug, error, export, host, info, reply, storage, warn,
    };
}
