//! The pure core of Annulus: hashing, ring, claim, membership, handoff and wire types, without I/O, clock or
//! runtime.
//!
//! The state machines in this crate take events and return effects; the host carries the effects out.

pub mod address;
pub mod claim;
pub mod codec;
pub mod contract;
pub mod coverage;
pub mod description;
pub mod handoff;
pub mod holding;
pub mod ids;
pub mod item;
#[doc(hidden)]
pub mod junk;
pub mod keyspace;
pub mod legend;
pub mod liveness;
pub mod mutants;
pub mod preference;
pub mod quorum;
pub mod request;
pub mod ring;
pub mod role;
pub mod routing;
pub mod state;
pub mod version;
pub mod voters;
pub mod wire;
pub mod wording;
