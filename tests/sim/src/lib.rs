//! A deterministic simulation of whole nodes: the production code on a network, disks, clocks and guests that a
//! seed controls.
//!
//! [`run`] starts machines with real nodes, forms a cluster of them and deploys modules. Clients then read, write
//! and delete keys through any node, while the seed's schedule injects faults and operators change the cluster.
//! At the end the run waits for everything to complete. Oracles ([`oracle`]) check the commands where guests run
//! them, and every cluster state that a node publishes.

mod acts;
mod eyes;
pub mod fleet;
pub mod guests;
mod load;
pub mod nature;
mod operators;
pub mod oracle;
mod replicated;
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
