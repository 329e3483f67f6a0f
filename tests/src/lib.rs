//! The cluster test harness: real nodes, a load checked against a model, and the guests to run on the nodes.

pub mod book;
pub mod chaos;
pub mod client;
pub mod compiled;
pub mod growth;
pub mod harness;
pub mod image;
pub mod inside;
pub mod ledger;
pub mod load;
pub mod ports;
pub mod relay;
pub mod sim;
pub mod splits;

pub use annulus_sim::guests;
