//! The cluster harness.

pub mod guests;
