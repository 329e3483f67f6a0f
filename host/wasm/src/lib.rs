//! WebAssembly: the engine, the contract's bindings, what a guest may call, and its limits.
//!
//! Nothing here knows of rings or networks. An [`Engine`] turns bytes into a [`Module`]
//! (validated, compiled, described); an [`Instance`] of it is one vnode's guest: one store,
//! one caller at a time. A trap poisons the store, so the owner drops the instance and makes
//! another from the module, which costs microseconds.

mod bindings;
mod cache;
mod clock;
mod compiler;
mod convert;
mod description;
mod engine;
mod error;
mod exports;
mod host;
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
pub use host::{CallScope, VnodePlace, page_of_all};
pub use instance::{Answer, Instance};
pub use limits::Limits;
pub use memory::one_arena_per_processor;
pub use room::{LimitedBy, NoRoom, RoomLimit};
