//! The oracles, which report broken rules; one per file.
//!
//! - [`truth`]: acknowledged writes are kept, deleted keys stay deleted, a write is applied once, answers are true
//!   and in time.
//! - [`ledger`]: every log entry has one state, and only the owner of a partition serves it.
//! - [`coverage`]: the answer of a coverage command is complete.
//! - [`counts`]: a handoff carries exactly the items of the old owner.
//! - [`formats`]: the previous release can read every item that is written.
//! - [`members`]: replicas lose no acknowledged member of a set.
//! - [`leaks`]: nothing of an ended node, transfer or vnode is left.
//!
//! `load.rs` checks that requests are fast without faults, and `rest.rs` that everything completes.

pub mod counts;
pub mod coverage;
pub mod formats;
pub mod leaks;
pub mod ledger;
pub mod members;
mod trail;
pub mod truth;
