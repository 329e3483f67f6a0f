//! The Annulus host: ring, transport, vnodes, handoff, and the WebAssembly components in them.
//!
//! Below `main.rs` imports point one way: `cli -> node -> {admin, request, modules} -> {vnode,
//! handoff, cluster} -> {wasm, storage, transport} -> annulus_core`.

pub mod admin;
pub mod cli;
pub mod cluster;
pub mod codec;
pub mod data_dir;
pub mod handoff;
pub mod modules;
pub mod node;
pub mod request;
pub mod storage;
pub mod toolchain;
pub mod transport;
pub mod values;
pub mod vnode;
pub mod wasm;
