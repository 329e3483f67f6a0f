//! The simulated environment of nodes in place of the operating system: one seed, one thread, paused time.
//!
//! A [`Simulation`] is a seed and a runtime whose virtual time advances only when no task is ready. Each
//! incarnation of a node, from its start to its end, is an [`annulus_ground::Scope`]. The same seed gives the
//! same run, poll for poll; [`Seeded::trace`] verifies it.
//!
//! [`trial`] is for authors of guests: it runs a component on several nodes under seeded faults.

pub mod disk;
pub mod guest;
mod nodes;
pub mod trial;
mod weather;
mod world;

pub use nodes::{At, Attendant, Called, Nodes, address};
pub use weather::{Changeable, Sent};
pub use world::{Seeded, Settings, Simulation};
