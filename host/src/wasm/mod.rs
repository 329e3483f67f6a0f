//! The wasm engine, the bindings, the host imports, the limits.
