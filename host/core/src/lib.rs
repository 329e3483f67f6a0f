//! The pure core of Annulus: no I/O, no clock, no runtime. Events in, effects out.

pub mod ids;
pub mod keyspace;
pub mod ring;
pub mod state;
