//! Reads a component's imports and exports without running it.

use wit_component::{ComponentEncoder, DecodedWasm, decode};
use wit_parser::{Resolve, WorldItem, WorldKey};

use super::BuildError;

/// The package whose interfaces make a component a vnode.
const CONTRACT: &str = "annulus:vnode/";

/// The first eight bytes of a component and of a core module: magic, version, layer.
const COMPONENT_HEAD: [u8; 8] = *b"\0asm\x0d\0\x01\0";
const MODULE_HEAD: [u8; 8] = *b"\0asm\x01\0\0\0";

/// One interface that a component imports or exports.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Interface {
    /// Name with version: `annulus:vnode/storage@0.1.0`.
    pub name: String,
    /// The functions of the interface that are used or offered.
    pub functions: Vec<String>,
}

/// The imports and exports of a component.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ComponentInterfaces {
    /// Version of the contract that the component implements; `None` if it is not a vnode.
    pub contract: Option<String>,
    /// Interfaces that the component needs from the host.
    pub imports: Vec<Interface>,
    /// Interfaces that the component offers to the host.
    pub exports: Vec<Interface>,
}

/// Read a component's imports and exports.
///
/// # Errors
/// A message with the reason why the bytes are not a component.
pub fn interfaces(component: &[u8]) -> Result<ComponentInterfaces, String> {
    if component.starts_with(&MODULE_HEAD) {
        return Err("a core module, not a component".to_owned());
    }
    if !component.starts_with(&COMPONENT_HEAD) {
        return Err("not a WebAssembly component".to_owned());
    }
    let decoded = decode(component).map_err(|error| format!("not a sound component: {error:#}"))?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err("a WIT package, not a component".to_owned());
    };
    let world = &resolve.worlds[world];
    let listed = |(key, item)| interface(&resolve, key, item);
    let imports: Vec<Interface> = world.imports.iter().filter_map(listed).collect();
    let exports: Vec<Interface> = world.exports.iter().filter_map(listed).collect();
    let vnode = exports.iter().find_map(|export| export.name.strip_prefix(CONTRACT)?.strip_prefix("vnode@"));
    Ok(ComponentInterfaces { contract: vnode.map(str::to_owned), imports, exports })
}

fn interface(resolve: &Resolve, key: &WorldKey, item: &WorldItem) -> Option<Interface> {
    let name = resolve.name_world_key(key);
    match item {
        WorldItem::Interface { id, .. } => {
            Some(Interface { name, functions: resolve.interfaces[*id].functions.keys().cloned().collect() })
        }
        WorldItem::Function(_) => Some(Interface { name, functions: Vec::new() }),
        WorldItem::Type { .. } => None,
    }
}

/// Wrap the compiler's output as a component, unless it is one already, and check that it is a vnode.
pub(super) fn finish(bytes: Vec<u8>) -> Result<Vec<u8>, BuildError> {
    let component = if bytes.starts_with(&MODULE_HEAD) {
        let encoder = ComponentEncoder::default().validate(true).module(&bytes);
        encoder
            .and_then(|mut encoder| encoder.encode())
            .map_err(|error| BuildError::NoComponent(format!("{error:#}")))?
    } else {
        bytes
    };
    let interfaces = interfaces(&component).map_err(BuildError::NoComponent)?;
    if interfaces.contract.is_none() {
        let hint = "it exports no annulus:vnode; does it have an `export!(...)`?";
        return Err(BuildError::NoComponent(hint.to_owned()));
    }
    Ok(component)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn bytes_that_are_not_a_component_are_rejected_with_the_reason() {
        for (bytes, reason) in [
            (b"".as_slice(), "not a WebAssembly component"),
            (b"#!/bin/sh", "not a WebAssembly component"),
            (&MODULE_HEAD, "a core module"),
            (b"\0asm\x0d\0\x01\0\x07\xff", "not a sound component"),
        ] {
            assert!(interfaces(bytes).unwrap_err().contains(reason), "{bytes:?}");
        }
    }

    #[test]
    fn a_component_without_the_contract_is_not_a_vnode() {
        assert_eq!(interfaces(&COMPONENT_HEAD).unwrap().contract, None);
        assert!(
            matches!(finish(COMPONENT_HEAD.to_vec()), Err(BuildError::NoComponent(why)) if why.contains("export!"))
        );
        assert!(matches!(finish(MODULE_HEAD.to_vec()), Err(BuildError::NoComponent(_))));
    }
}
