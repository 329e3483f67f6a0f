//! The macro `export!`, which selects the exports of a component.

/// Export a [`Vnode`](crate::Vnode) and the interfaces that are named as a component.
///
/// ```
/// # use annulus_guest::prelude::*;
/// # #[derive(Default)] struct Kv { data: Table<Latest<Value>> }
/// # #[derive(Commands)] enum Command { Get { key: String } }
/// # impl Vnode for Kv {
/// #     type Command = Command;
/// #     fn handle_command(&mut self, Command::Get { key }: Command) -> Result<Reply, Failure> {
/// #         reply(self.data.get(&key).and_then(Latest::value))
/// #     }
/// # }
/// # impl Handoff for Kv { fn items(&mut self) -> &mut dyn Items { &mut self.data } }
/// export!(Kv: Handoff);
/// ```
///
/// The names are `Coverage`, `Merge` or `Handoff` (not both), `Transfer` and `Lifecycle`; the vnode must
/// implement the trait of each. On targets other than wasm32 the macro only checks that.
#[macro_export]
macro_rules! export {
    ($vnode:ident $(: $first:ident $(+ $more:ident)*)?) => {
        const _: () = {
            const fn vnode<V: $crate::Vnode>() {}
            vnode::<$vnode>();
            $(
                $crate::__export_check!($first $vnode);
                $($crate::__export_check!($more $vnode);)*
            )?
        };
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            impl $crate::rt::Instance for $vnode {
                fn cell() -> &'static ::std::thread::LocalKey<::std::cell::RefCell<::std::option::Option<Self>>> {
                    ::std::thread_local! {
                        static VNODE: ::std::cell::RefCell<::std::option::Option<$vnode>> =
                            const { ::std::cell::RefCell::new(::std::option::Option::None) };
                    }
                    &VNODE
                }
            }
            type Component = $crate::rt::Component<$vnode>;
            $crate::bindings::export_vnode!(Component with_types_in $crate::bindings);
            $(
                $crate::__export_interface!($first Component);
                $($crate::__export_interface!($more Component);)*
            )?
        };
    };
}

/// Fails to compile if `export!` names something that is not an interface, a trait that the vnode does not
/// implement, or both `Merge` and `Handoff`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_check {
    (Merge $vnode:ident) => {
        const EXPORT_EITHER_MERGE_OR_HANDOFF: fn() = || {
            fn implements<V: $crate::Merge>() {}
            implements::<$vnode>();
        };
    };
    (Handoff $vnode:ident) => {
        const EXPORT_EITHER_MERGE_OR_HANDOFF: fn() = || {
            fn implements<V: $crate::Handoff>() {}
            implements::<$vnode>();
        };
    };
    ($interface:ident $vnode:ident) => {
        const _: fn() = || {
            fn implements<V: $crate::$interface>() {}
            implements::<$vnode>();
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export_interface {
    (Coverage $component:ident) => {
        $crate::bindings::coverage::export_coverage!($component with_types_in $crate::bindings::coverage);
    };
    (Merge $component:ident) => {
        $crate::bindings::merge::export_merge!($component with_types_in $crate::bindings::merge);
    };
    (Handoff $component:ident) => {
        $crate::bindings::handoff::export_handoff!($component with_types_in $crate::bindings::handoff);
    };
    (Transfer $component:ident) => {
        $crate::bindings::transfer::export_transfer!($component with_types_in $crate::bindings::transfer);
    };
    (Lifecycle $component:ident) => {
        $crate::bindings::lifecycle::export_lifecycle!($component with_types_in $crate::bindings::lifecycle);
    };
    ($other:ident $component:ident) => {
        compile_error!("export! knows Coverage, Merge, Handoff, Transfer and Lifecycle");
    };
}
