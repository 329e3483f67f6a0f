//! The bindings of `wit/vnode.wit`.
//!
//! They are generated from the world `everything`, which no module has to fit: `exports` finds the interfaces of a
//! component one by one.

#![allow(missing_docs, reason = "generated from wit/vnode.wit, which has the documentation")]
#![allow(clippy::all, reason = "generated")]

wasmtime::component::bindgen!({
    world: "everything",
    path: "../../wit",
    exports: { default: async },
    // Arguments of exported functions borrow; a type that is also a result gets a second name for that.
    ownership: Borrowing { duplicate_if_necessary: true },
});
