//! Whole nodes under one seed: the code that serves users, on a network, disks, clocks and guests that the
//! seed decides about.
//!
//! [`run`] makes machines with real nodes, has them become a cluster with modules, lets clients read, write and
//! delete keys through any node while the seed's schedule kills, pauses, cuts, and operates, and at last waits
//! for everything to complete. Oracles look at the point of effect: the guest ([`truth`]), and every state that a
//! node shows ([`ledger`]).

pub mod ledger;
mod load;
mod operators;
mod rest;
pub mod rule;
mod run;
pub mod scale;
pub mod schedule;
pub mod truth;

pub use annulus_core::mutants::Mutant;
pub use run::{Report, Seen, Settings, run};
