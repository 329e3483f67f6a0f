//! The contract's interfaces that a component exports, and the functions in them.

use annulus_core::description::Exported;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{AsContextMut, Engine};

use super::bindings::exports::annulus::vnode as wit;
use super::error::InvalidComponent;
use super::host::HostState;
use super::imports;

/// Version of the contract that this host implements.
const CONTRACT: &str = "0.1.0";
const PACKAGE: &str = "annulus:vnode/";

/// Indices of a component's exports, looked up once per module.
#[derive(Clone)]
pub(super) struct Indices {
    vnode: wit::vnode::GuestIndices,
    coverage: Option<wit::coverage::GuestIndices>,
    merge: Option<wit::merge::GuestIndices>,
    handoff: Option<wit::handoff::GuestIndices>,
    transfer: Option<wit::transfer::GuestIndices>,
    lifecycle: Option<wit::lifecycle::GuestIndices>,
}

/// The exported functions of one instance.
pub(super) struct Exports {
    pub(super) vnode: wit::vnode::Guest,
    pub(super) coverage: Option<wit::coverage::Guest>,
    pub(super) merge: Option<wit::merge::Guest>,
    pub(super) handoff: Option<wit::handoff::Guest>,
    pub(super) transfer: Option<wit::transfer::Guest>,
    pub(super) lifecycle: Option<wit::lifecycle::Guest>,
}

/// Return the optional interfaces that a component exports, and whether it imports a function that writes.
/// Reads only the component's type; nothing is instantiated.
pub(super) fn survey(engine: &Engine, component: &Component) -> Result<Exported, InvalidComponent> {
    let ty = component.component_type();
    let mut found = Exported::default();
    let mut has_vnode = false;
    for (name, _) in ty.exports(engine) {
        let Some(interface) = ours(name)? else { continue };
        match interface {
            "vnode" => has_vnode = true,
            "coverage" => found.coverage = true,
            "merge" => found.merge = true,
            "handoff" => found.handoff = true,
            "transfer" => found.transfer = true,
            "lifecycle" => found.lifecycle = true,
            // This is an interface of a newer contract. Hosts ignore interfaces that they do not know.
            _ => {}
        }
    }
    for (name, item) in ty.imports(engine) {
        imports::check(name)?;
        if ours(name)? == Some("storage")
            && let ComponentItem::ComponentInstance(instance) = item.ty
        {
            found.writes_storage =
                instance.exports(engine).any(|(function, _)| function == "put" || function == "delete");
        }
    }
    if !has_vnode {
        return Err(InvalidComponent::DoesNotFit(
            "it does not export annulus:vnode/vnode (is it a component for another host?)".to_owned(),
        ));
    }
    if found.merge && found.handoff {
        return Err(InvalidComponent::DoesNotFit(
            "it exports both `merge` (state in host storage) and `handoff` (state in the guest's memory)"
                .to_owned(),
        ));
    }
    Ok(found)
}

/// Return the name of an interface of the contract's package, `None` for any other. Fails if its version is
/// not 0.1.x.
fn ours(name: &str) -> Result<Option<&str>, InvalidComponent> {
    let Some(rest) = name.strip_prefix(PACKAGE) else { return Ok(None) };
    let (interface, version) = rest.split_once('@').unwrap_or((rest, "none"));
    if version.starts_with("0.1.") {
        return Ok(Some(interface));
    }
    Err(InvalidComponent::OtherContract { component: version.to_owned(), host: CONTRACT })
}

impl Indices {
    /// Look up the functions. Fails for an interface that lacks a function, and names it.
    pub(super) fn find(pre: &InstancePre<HostState>, exported: &Exported) -> Result<Self, InvalidComponent> {
        let misfit = |error: wasmtime::Error| InvalidComponent::DoesNotFit(format!("{error:#}"));
        macro_rules! optional {
            ($there:expr, $interface:ident) => {
                if $there { Some(wit::$interface::GuestIndices::new(pre).map_err(misfit)?) } else { None }
            };
        }
        Ok(Self {
            vnode: wit::vnode::GuestIndices::new(pre).map_err(misfit)?,
            coverage: optional!(exported.coverage, coverage),
            merge: optional!(exported.merge, merge),
            handoff: optional!(exported.handoff, handoff),
            transfer: optional!(exported.transfer, transfer),
            lifecycle: optional!(exported.lifecycle, lifecycle),
        })
    }

    /// Return the functions of one instance, after checking their types.
    pub(super) fn load(
        &self,
        mut store: impl AsContextMut<Data = HostState>,
        instance: &wasmtime::component::Instance,
    ) -> wasmtime::Result<Exports> {
        macro_rules! optional {
            ($interface:ident) => {
                match &self.$interface {
                    Some(indices) => Some(indices.load(&mut store, instance)?),
                    None => None,
                }
            };
        }
        Ok(Exports {
            vnode: self.vnode.load(&mut store, instance)?,
            coverage: optional!(coverage),
            merge: optional!(merge),
            handoff: optional!(handoff),
            transfer: optional!(transfer),
            lifecycle: optional!(lifecycle),
        })
    }
}
