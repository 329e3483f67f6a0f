//! A load on a replicated module, and the ledger of what was acknowledged: nothing of it may be missing, and nothing that
//! was refused may be found.
//!
//! The module is `tests/guests/replicated`: each key has a set of unique ids and a counter. Several clients write a key at
//! the same time, through different nodes. Unlike the model of [`crate::load`], which knows the only writer of each key,
//! the ledger can therefore judge only modules whose `merge` keeps the writes of both sides.

mod account;
mod client;
mod crowd;
mod report;

pub use crowd::{Crowd, Settings};
pub use report::Report;
