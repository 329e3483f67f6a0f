//! The Annulus host: ring, transport, handoff, and vnodes that run WebAssembly components.
//!
//! Imports point one way: `cli -> node -> admin -> {request, handoff} -> modules -> {vnode, cluster} ->
//! {wasm, transport, data_dir} -> {storage, annulus_core}`. `host/ARCHITECTURE.md` has the whole table.

pub mod cli;

pub use annulus_admin as admin;
pub use annulus_cluster as cluster;
pub use annulus_core::codec;
pub use annulus_data_dir as data_dir;
pub use annulus_handoff as handoff;
pub use annulus_modules as modules;
pub use annulus_node as node;
pub use annulus_replica as replica;
pub use annulus_request as request;
pub use annulus_storage as storage;
pub use annulus_toolchain as toolchain;
pub use annulus_transport as transport;
pub use annulus_values as values;
pub use annulus_vnode as vnode;
pub use annulus_wasm as wasm;
