//! WebAssembly: the engine, the contract's bindings, the imports of guests, and the limits on guests.
//!
//! This crate knows nothing of rings or networks. An [`Engine`] turns bytes into a [`Module`]: validated,
//! compiled and described. An [`Instance`] of a module is the guest of one vnode: one store, one caller at a
//! time. A trap poisons the store, so the owner drops the instance and makes another from the module, which
//! takes microseconds.

mod bindings;
mod budget;
mod cache;
mod clock;
mod compiler;
mod convert;
mod description;
mod engine;
mod error;
mod exports;
mod guest_log;
mod host;
mod imports;
mod inspect;
mod instance;
mod limits;
mod memory;
mod meter;
mod pace;
mod room;
mod simulated;
mod stderr;
mod ticker;

pub use compiler::{COMPILE_WORD, compile_component};
// Other rooms know descriptions by the engine that produces them.
pub use annulus_core::description::{CommandInfo, Description, Effect, Exported, Param, Route, is_name};
pub use engine::{Engine, Module, trial_place};
pub use error::{CommandFailure, Doom, GuestError, InvalidComponent};
pub use host::{CallScope, VnodePlace};
pub use instance::{Answer, Instance};
pub use limits::Limits;
pub use memory::one_arena_per_processor;
pub use room::{LimitedBy, NoRoom, RoomLimit};
