//! Whole nodes under one seed: the code that serves users, on a network, disks, clocks and guests that the
//! seed decides about.

pub mod ledger;
pub mod rule;
pub mod schedule;
pub mod truth;
