//! Rust bindings generated from `wit/vnode.wit`.
//!
//! The world `everything` exists only to generate bindings from it; modules need not conform to it. The interfaces
//! that a component exports are looked up one by one (see `exports`).

#![allow(missing_docs, reason = "generated from wit/vnode.wit, which has the documentation")]
#![allow(clippy::all, reason = "generated")]

wasmtime::component::bindgen!({
    world: "everything",
    path: "../../wit",
    exports: { default: async },
    // An item may have to be read from disk.
    imports: {
        "annulus:vnode/storage.get": async,
        "annulus:vnode/storage.put": async,
        "annulus:vnode/storage.delete": async,
        "annulus:vnode/storage.scan": async,
    },
    // Arguments of exported functions borrow; a type that is also a result gets a second name for that.
    ownership: Borrowing { duplicate_if_necessary: true },
});
