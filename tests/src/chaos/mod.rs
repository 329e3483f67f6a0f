//! Chaos runs with real processes: nodes join, leave and are replaced, crash, freeze and are cut off, under a
//! load that is checked against a model.
//!
//! `cargo run --release -p annulus-tests -- chaos membership --seconds 180 --seed 1`
//!
//! `cargo run --release -p annulus-tests -- chaos durability --seconds 1800 --seed 1`
//!
//! `cargo run --release -p annulus-tests -- chaos crash --cycles 500 --seed 1 [--power]`

mod beside;
mod change;
pub mod crash;
pub mod durability;
mod figures;
mod losses;
mod membership;
mod releases;
mod run;
mod schedule;
mod watch;

pub use beside::{Kind, Report};
pub use figures::{Event, Oracle, Outcome};
pub(crate) use losses::possible_losses;
pub use membership::{Results, Settings, membership};
pub use schedule::{Act, Fault, Schedule};
pub use watch::{Expected, Watch};
