//! Bytes of components, for tests that need one that no toolchain makes.

/// First bytes of a component.
pub const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
/// First bytes of a core module.
pub const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// Encode an unsigned number as LEB128, as WebAssembly does.
pub fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return bytes;
        }
    }
}

/// Encode a section of a component or a core module.
pub fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}
