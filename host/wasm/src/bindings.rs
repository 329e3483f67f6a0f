//! What `wit/vnode.wit` becomes in Rust.
//!
//! No module has to fit the world `everything`: it is only what bindings are generated from.
//! Which interfaces a component exports is found out one by one (see `exports`).

#![allow(missing_docs, reason = "generated from wit/vnode.wit, which has the documentation")]
#![allow(clippy::all, reason = "generated")]

wasmtime::component::bindgen!({
    world: "everything",
    path: "../../wit",
    exports: { default: async },
    // Arguments of exported functions borrow; a type that is also a result gets a second name for that.
    ownership: Borrowing { duplicate_if_necessary: true },
});
