//! Whole clusters of real processes, and what holds of the whole repository.
//!
//! One program, because each one more costs a link of everything, and because its tests wait much:
//! for deadlines, for silence to be noticed, for a ring to settle. Side by side they wait together.
#![allow(clippy::unwrap_used, missing_docs)]

mod architecture;
mod chaos;
mod control;
mod crash;
mod demo;
mod handoff;
mod hostile;
mod liveness;
mod load;
mod planned;
mod relay;
mod riak_test;
mod transcript;
mod transfers;
mod upgrade;
mod vnode;
mod words;
