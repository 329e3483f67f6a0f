//! Tests with whole clusters of real processes, and checks of the whole repository.
//!
//! All files are one program: every program links the whole host, and tests that mostly wait (for deadlines,
//! for the detection of a silent peer, for a ring to settle) overlap only within one program.
#![allow(clippy::unwrap_used, missing_docs)]

mod addresses;
mod architecture;
mod bounds;
mod chaos;
mod compiler;
mod control;
mod crash;
mod crash_loop;
mod damaged;
mod decoders;
mod demo;
mod durable;
mod full_disk;
mod handoff;
mod hostile;
mod limits;
mod liveness;
mod load;
mod logging;
mod planned;
mod relay;
mod releases;
mod replicas;
mod riak_test;
mod simulated;
mod snapshots;
mod splits;
mod streams;
mod told;
mod transcript;
mod transfers;
mod twins;
mod unable;
mod upgrade;
mod vnode;
mod wasm_bytes;
mod words;
