//! The pure core of Annulus: no I/O, no clock, no runtime. Events in, effects out.

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
pub mod keyspace;
pub mod legend;
pub mod liveness;
pub mod mutants;
pub mod preference;
pub mod request;
pub mod ring;
pub mod routing;
pub mod state;
pub mod version;
pub mod voters;
pub mod wire;
pub mod wording;
