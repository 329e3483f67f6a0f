//! No code: a list of dependencies.
//!
//! Cargo compiles a dependency with the features that the selected packages ask for, so
//! `cargo test -p annulus-vnode` would compile wasmtime again, with fewer features than the whole
//! workspace. Each package of the host has this one as a dev-dependency, which makes every
//! selection ask for the same. `tests/tests/architecture.rs` checks it.
