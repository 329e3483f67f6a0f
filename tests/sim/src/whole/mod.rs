//! Whole nodes under one seed: the code that serves users, on a network, disks, clocks and guests that the
//! seed decides about.
//!
//! [`run`] makes machines with real nodes, has them become a cluster with a module, lets clients read, write and
//! delete its keys through any node while the seed's schedule kills, pauses, cuts, and joins, and at last waits
//! for everything to complete. Oracles look at the point of effect: the guest ([`truth`]), and every state that a
//! node shows ([`ledger`]).

pub mod ledger;
mod load;
mod operators;
mod rest;
pub mod rule;
mod run;
pub mod schedule;
pub mod truth;

pub use run::{Report, Seen, Settings, run};
