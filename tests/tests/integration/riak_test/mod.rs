//! The membership and handoff scenarios of riak_test, by name, with real processes.
//!
//! riak keeps three replicas on disk; the module here keeps one in memory, so what a process held
//! goes with it. Everything else is asked as they ask it, and mostly under a load that a model
//! checks.

mod build_cluster;
mod claimant;
mod common;
mod converge;
mod down;
mod handoff;
mod leave;
mod location;
mod refusals;
mod staged_clustering;
mod starting;
