//! A field's Rust type as CDDL for the description, and as serde needs it for the decoder.

use syn::{GenericArgument, PathArguments, Type};

/// The properties of a field's type that the description and the decoder need.
pub struct Described {
    pub cddl: String,
    pub optional: bool,
    /// `Vec<u8>` and `Option<Vec<u8>>` are CBOR bytes; serde alone would treat them as lists.
    pub bytes: bool,
}

/// Describe a type by its name alone, because a macro has no more information. An unknown type is `any`.
pub fn describe(ty: &Type) -> Described {
    if let Some(inner) = argument_of(ty, "Option") {
        return Described { optional: true, ..describe(inner) };
    }
    let bytes = is_bytes(ty);
    Described { cddl: cddl(ty), optional: false, bytes }
}

fn cddl(ty: &Type) -> String {
    if is_bytes(ty) {
        return "bytes".to_owned();
    }
    for list in ["Vec", "VecDeque", "BTreeSet", "HashSet"] {
        if let Some(inner) = argument_of(ty, list) {
            return format!("[* {}]", cddl(inner));
        }
    }
    for map in ["BTreeMap", "HashMap"] {
        if let Some([key, value]) = arguments_of(ty, map).as_deref() {
            if cddl(key) == "text" {
                return format!("{{* text => {}}}", cddl(value));
            }
        }
    }
    if let Some(inner) = argument_of(ty, "Option") {
        return format!("{} / null", cddl(inner));
    }
    if let Some(inner) = argument_of(ty, "Box") {
        return cddl(inner);
    }
    match last_segment(ty).as_deref() {
        Some("String" | "char") => "text",
        Some("i8" | "i16" | "i32" | "i64" | "isize") => "int",
        Some("u8" | "u16" | "u32" | "u64" | "usize") => "uint",
        Some("f32" | "f64") => "float",
        Some("bool") => "bool",
        Some("ByteBuf") => "bytes",
        _ => "any",
    }
    .to_owned()
}

fn is_bytes(ty: &Type) -> bool {
    argument_of(ty, "Vec").and_then(last_segment).is_some_and(|inner| inner == "u8")
}

fn last_segment(ty: &Type) -> Option<String> {
    let Type::Path(path) = ty else { return None };
    path.path.segments.last().map(|segment| segment.ident.to_string())
}

fn argument_of<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    arguments_of(ty, name)?.into_iter().next()
}

fn arguments_of<'a>(ty: &'a Type, name: &str) -> Option<Vec<&'a Type>> {
    let Type::Path(path) = ty else { return None };
    let segment = path.path.segments.last().filter(|segment| segment.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return None };
    let types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    Some(types.collect())
}
