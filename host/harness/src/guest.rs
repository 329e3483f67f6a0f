//! Guests that follow a script: modules of a simulation that are deployed like any other.
//!
//! A [`Script`] is a component: [`Script::component`] returns its bytes, which a node stores, sends, and
//! prepares with its [`Scripts`] in place of the WebAssembly engine. The vnodes then run plain Rust: a
//! key/value store that keeps its items itself or lets the host keep them, and fails as its script says.
//! Every choice is drawn from [`annulus_ground::random`], so that a seed repeats its choices. An [`Observer`]
//! sees each command at the point where it takes effect.

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
