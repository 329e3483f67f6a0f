//! Guests that follow a script: modules of a simulation, deployed like any other.
//!
//! A [`Script`] is a component: [`Script::component`] gives the bytes, which a node keeps, sends, and makes ready by
//! its [`Scripts`], in the place of the engine. What vnodes then run is plain Rust: a key/value store that keeps
//! its items itself or has the host keep them, and fails as its script says. Every choice is drawn from
//! [`annulus_ground::random`], so a seed has the same ones again. [`Observer`] sees each command at the point
//! where it takes effect.

mod entry;
mod held;
mod loader;
mod module;
mod observer;
mod script;
mod scripted;

pub use entry::Entry;
pub use held::Contents;
pub use loader::Scripts;
pub use observer::{Fall, Observer, Outcome, Run, Write};
pub use script::{EndlessFold, Keeps, OneIn, Oversize, Script, Slow, Traps};
