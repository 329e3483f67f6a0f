//! Bindings that wit-bindgen generates from `wit/vnode.wit`: one world for the core, and one for each
//! optional interface. A component exports the interfaces whose `export_*` macro it invokes. The linker joins
//! their worlds, so no world for each combination is needed.
#![allow(missing_docs, clippy::all)]

wit_bindgen::generate!({
    path: "../wit",
    world: "stateless",
    pub_export_macro: true,
    export_macro_name: "export_vnode",
    additional_derives: [PartialEq],
    generate_unused_types: true,
});

macro_rules! optional_interface {
    ($module:ident, $world:literal, $export:literal, $($with:tt)*) => {
        pub mod $module {
            wit_bindgen::generate!({
                path: "../wit",
                world: $world,
                pub_export_macro: true,
                export_macro_name: $export,
                additional_derives: [PartialEq],
                $($with)*
            });
        }
    };
    ($module:ident, $world:literal, $export:literal) => {
        optional_interface!(
            $module, $world, $export,
            with: { "annulus:vnode/types@0.1.0": crate::bindings::annulus::vnode::types },
        );
    };
}

optional_interface!(coverage, "with-coverage", "export_coverage");
optional_interface!(merge, "with-merge", "export_merge");
optional_interface!(handoff, "with-handoff", "export_handoff");
optional_interface!(transfer, "with-transfer", "export_transfer");
optional_interface!(lifecycle, "with-lifecycle", "export_lifecycle",);
