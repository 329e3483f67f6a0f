//! Limits on the components that are compiled at all.
//!
//! The time to compile a function grows faster than its size: a function of 8 MB takes minutes and gigabytes.
//! Reading the sizes takes milliseconds.

use wasmparser::{Parser, Payload};

use super::error::InvalidComponent;

/// Longest function, in bytes. The main loops of Python and JavaScript interpreters are less than half as
/// long.
const MAX_FUNCTION_BYTES: usize = 1 << 20;
/// Maximum number of functions of a component, over all its modules.
const MAX_FUNCTIONS: usize = 60_000;
/// Maximum number of modules, components and instances within a component.
const MAX_PARTS: usize = 1_000;

/// Refuse a component that is malformed or that would cost a compiler too much.
pub(super) fn check(component: &[u8]) -> Result<(), InvalidComponent> {
    // Refuse anything but a binary, WebAssembly's text format included.
    if !component.starts_with(b"\0asm") {
        return Err(InvalidComponent::NotAComponent(
            "it does not start with the WebAssembly magic bytes".to_owned(),
        ));
    }
    let costly = |what: String| Err(InvalidComponent::TooCostly(what));
    let (mut functions, mut parts) = (0_usize, 0_usize);
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(|error| InvalidComponent::NotAComponent(error.to_string()))?;
        match payload {
            Payload::CodeSectionStart { count, .. } => functions = functions.saturating_add(count as usize),
            Payload::CodeSectionEntry(body) if body.range().len() > MAX_FUNCTION_BYTES => {
                let bytes = body.range().len();
                return costly(format!("a function of {bytes} bytes; the limit is {MAX_FUNCTION_BYTES}"));
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => parts += 1,
            Payload::ComponentInstanceSection(section) => {
                parts = parts.saturating_add(section.count() as usize)
            }
            Payload::InstanceSection(section) => parts = parts.saturating_add(section.count() as usize),
            _ => {}
        }
        if functions > MAX_FUNCTIONS {
            return costly(format!("{functions} functions; the limit is {MAX_FUNCTIONS}"));
        }
        if parts > MAX_PARTS {
            return costly(format!("{parts} modules, components and instances; the limit is {MAX_PARTS}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use annulus_core::junk::{Target, attack, done};

    use super::*;

    /// A module with a type, a function and its code, in a component.
    const COMPONENT: &[u8] =
        b"\0asm\x0d\0\x01\0\x01\x1a\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x0a\x04\x01\x02\0\x0b";

    #[test]
    fn no_bytes_make_the_inspection_panic() {
        assert!(check(COMPONENT).is_ok(), "{:?}", check(COMPONENT).err());
        attack(&[Target {
            name: "component",
            valid: vec![COMPONENT.to_vec()],
            decode: |bytes| done(check(bytes)),
        }]);
    }
}
