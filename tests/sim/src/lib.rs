//! Whole nodes under one seed: the code that serves users, on a network, disks, clocks and guests that the
//! seed decides about.
//!
//! [`run`] makes machines with real nodes, has them become a cluster with modules, lets clients read, write and
//! delete keys through any node while the seed's schedule breaks things and operators change the cluster, and at
//! last waits for everything to complete. Oracles ([`oracle`]) look at the point of effect: the guest, and every state
//! that a node shows.

mod acts;
mod eyes;
pub mod fleet;
pub mod guests;
mod load;
pub mod nature;
mod operators;
pub mod oracle;
mod rest;
pub mod rule;
mod run;
pub mod saved;
pub mod scale;
pub mod schedule;
mod seen;
pub mod shrink;

pub use annulus_core::mutants::Mutant;
pub use nature::Nature;
pub use oracle::truth;
pub use run::{Report, Settings, run};
pub use seen::Seen;
