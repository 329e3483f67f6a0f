//! The membership and handoff scenarios of riak_test, under their names there, with real processes.
//!
//! riak keeps three replicas on disk; the module here keeps one in memory, so a process takes its items with
//! it. All other requirements are those of riak_test, mostly under a load that is checked against a model.

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
