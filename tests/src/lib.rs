//! The cluster harness.

pub mod guests;
pub mod inside;
