//! The attributes of variants and fields.

use syn::{Attribute, Expr, ExprLit, Ident, Lit, LitStr, Meta, Result};

/// Options of `#[command(...)]`.
#[derive(Default)]
pub struct CommandOptions {
    pub effect: Option<Ident>,
    pub route: Option<Ident>,
    pub key: Option<Ident>,
    pub name: Option<String>,
    pub reply: Option<String>,
    pub frees: Option<()>,
}

impl CommandOptions {
    pub fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut options = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("command")) {
            attribute.parse_nested_meta(|meta| {
                let word = meta.path.require_ident()?.clone();
                match word.to_string().as_str() {
                    "read" | "write" | "update" => set(&mut options.effect, word),
                    "everywhere" | "anywhere" => set(&mut options.route, word),
                    "frees" => set(&mut options.frees, ()),
                    "key" => set(&mut options.key, meta.value()?.parse()?),
                    "name" => set(&mut options.name, meta.value()?.parse::<LitStr>()?.value()),
                    "reply" => set(&mut options.reply, meta.value()?.parse::<LitStr>()?.value()),
                    _ => Err(()),
                }
                .map_err(|()| {
                    meta.error(
                        "allowed, each at most once: read, write or update; everywhere or anywhere; frees; \
                         key = field; name = \"...\"; reply = \"...\"",
                    )
                })
            })?;
        }
        Ok(options)
    }
}

/// Options of `#[arg(...)]`.
#[derive(Default)]
pub struct ArgOptions {
    pub ty: Option<String>,
    pub default: Option<()>,
}

impl ArgOptions {
    pub fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut options = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("arg")) {
            attribute.parse_nested_meta(|meta| {
                match meta.path.require_ident()?.to_string().as_str() {
                    "ty" => set(&mut options.ty, meta.value()?.parse::<LitStr>()?.value()),
                    "default" => set(&mut options.default, ()),
                    _ => Err(()),
                }
                .map_err(|()| meta.error("allowed, each at most once: ty = \"...\", default"))
            })?;
        }
        Ok(options)
    }
}

/// Set an option; fail if it is set already.
fn set<T>(option: &mut Option<T>, value: T) -> std::result::Result<(), ()> {
    match option.replace(value) {
        None => Ok(()),
        Some(_) => Err(()),
    }
}

/// Return the doc comment, with the lines of each paragraph joined.
pub fn doc(attributes: &[Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes {
        let Meta::NameValue(pair) = &attribute.meta else { continue };
        let Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) = &pair.value else { continue };
        if !pair.path.is_ident("doc") {
            continue;
        }
        match line.value().trim() {
            "" if text.is_empty() => {}
            "" => text.push_str("\n\n"),
            line => {
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push(' ');
                }
                text.push_str(line);
            }
        }
    }
    text.trim_end().to_owned()
}
