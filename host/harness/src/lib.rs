//! What simulated nodes stand on instead of the system: one seed, one thread, paused time.
//!
//! A [`Simulation`] is a seed with a runtime whose time goes on only when nobody has anything to do. Each life
//! of a node in it is an [`annulus_ground::Scope`]. The same seed gives the same run, poll for poll:
//! [`Seeded::trace`] is the proof.
//!
//! [`trial`] is for authors of guests: a component on several nodes, under seeded faults.

pub mod disk;
pub mod guest;
mod nodes;
pub mod trial;
mod weather;
mod world;

pub use nodes::{At, Attendant, Called, Nodes, address};
pub use weather::{Changeable, Sent};
pub use world::{Seeded, Settings, Simulation};
