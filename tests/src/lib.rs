//! The cluster harness: real nodes, a load that a model checks, and the guests to run on them.

pub mod chaos;
pub mod client;
pub mod growth;
pub mod harness;
pub mod inside;
pub mod load;
pub mod relay;
pub mod sim;
pub mod splits;

pub use annulus_sim::guests;
