//! The cluster harness.

pub mod guests;
pub mod harness;
pub mod inside;
