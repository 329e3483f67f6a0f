//! The code that the derive generates.

use std::collections::HashSet;

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Error, Field, Fields, Ident, Result, Type, Variant};

use crate::attributes::{ArgOptions, CommandOptions, doc};
use crate::types::describe;

pub fn commands(input: &DeriveInput) -> Result<TokenStream> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, "commands are the variants of an enum"));
    };
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(&input.generics, "commands take no type parameters"));
    }
    let mut names = HashSet::new();
    let mut infos = Vec::new();
    let mut arms = Vec::new();
    for variant in &data.variants {
        let command = Command::of(variant)?;
        if !names.insert(command.name.clone()) {
            return Err(Error::new_spanned(variant, format!("there is a second command `{}`", command.name)));
        }
        infos.push(command.info());
        arms.push(command.arm());
    }
    let ident = &input.ident;
    Ok(quote! {
        #[automatically_derived]
        impl ::annulus_guest::Commands for #ident {
            const PACKAGE: ::annulus_guest::Package = ::annulus_guest::Package {
                name: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION"),
                doc: env!("CARGO_PKG_DESCRIPTION"),
            };
            fn describe() -> ::std::vec::Vec<::annulus_guest::CommandInfo> {
                ::std::vec![#(#infos),*]
            }
            fn decode(
                command: &str,
                args: &[u8],
            ) -> ::core::result::Result<Self, ::annulus_guest::Failure> {
                let _ = args;
                match command {
                    #(#arms)*
                    _ => ::core::result::Result::Err(::annulus_guest::Failure::UnknownCommand),
                }
            }
        }
    })
}

struct Command<'a> {
    ident: &'a Ident,
    name: String,
    doc: String,
    options: CommandOptions,
    params: Vec<Param<'a>>,
    key: Option<String>,
}

struct Param<'a> {
    ident: &'a Ident,
    name: String,
    doc: String,
    ty: &'a Type,
    cddl: String,
    optional: bool,
    default: bool,
    bytes: bool,
}

impl<'a> Command<'a> {
    fn of(variant: &'a Variant) -> Result<Self> {
        let options = CommandOptions::of(&variant.attrs)?;
        let params = match &variant.fields {
            Fields::Unit => Vec::new(),
            Fields::Named(fields) => fields.named.iter().map(Param::of).collect::<Result<_>>()?,
            Fields::Unnamed(fields) => {
                return Err(Error::new_spanned(
                    fields,
                    "parameters must have names: `Variant { key: String }`",
                ));
            }
        };
        let key = key_of(variant, &options, &params)?;
        let name = options.name.clone().unwrap_or_else(|| kebab_case(&variant.ident.to_string()));
        Ok(Self { ident: &variant.ident, name, doc: doc(&variant.attrs), options, params, key })
    }

    fn info(&self) -> TokenStream {
        let Self { name, doc, .. } = self;
        let reply = self.options.reply.as_deref().unwrap_or("any");
        let effect = match self.options.effect.as_ref().map(ToString::to_string).as_deref() {
            Some("write") => quote!(Write),
            Some("update") => quote!(Update),
            _ => quote!(Read),
        };
        let route = match (&self.key, &self.options.route) {
            (Some(key), _) => quote!(ByParam(::std::string::String::from(#key))),
            (None, Some(route)) if route == "everywhere" => quote!(Everywhere),
            _ => quote!(Anywhere),
        };
        let params = self.params.iter().map(|param| {
            let Param { name, cddl, doc, .. } = param;
            let make = if param.optional || param.default { quote!(optional) } else { quote!(required) };
            quote!(::annulus_guest::Param::#make(#name, #cddl, #doc))
        });
        let meta = self
            .options
            .frees
            .map(|()| quote!((::std::string::String::from("frees"), ::std::string::String::new())));
        quote! {
            ::annulus_guest::CommandInfo {
                name: ::std::string::String::from(#name),
                doc: ::std::string::String::from(#doc),
                effect: ::annulus_guest::Effect::#effect,
                route: ::annulus_guest::Route::#route,
                params: ::std::vec![#(#params),*],
                reply: ::std::string::String::from(#reply),
                meta: ::std::vec![#meta],
            }
        }
    }

    fn arm(&self) -> TokenStream {
        let Self { ident, name, .. } = self;
        if self.params.is_empty() {
            return quote!(#name => ::core::result::Result::Ok(Self::#ident {}),);
        }
        let fields: Vec<_> = self.params.iter().map(|param| param.ident).collect();
        let declarations = self.params.iter().map(Param::declaration);
        let checks = self.params.iter().map(Param::check);
        let arguments = format_ident!("Args", span = Span::mixed_site());
        quote! {
            #name => {
                #[derive(::annulus_guest::__private::serde::Deserialize)]
                #[serde(crate = "::annulus_guest::__private::serde")]
                struct #arguments { #(#declarations),* }
                let #arguments { #(#fields),* } =
                    ::annulus_guest::__private::decode_args(args, &[#(#checks),*])?;
                ::core::result::Result::Ok(Self::#ident { #(#fields),* })
            }
        }
    }
}

impl<'a> Param<'a> {
    fn of(field: &'a Field) -> Result<Self> {
        let ident =
            field.ident.as_ref().ok_or_else(|| Error::new_spanned(field, "a parameter must have a name"))?;
        let options = ArgOptions::of(&field.attrs)?;
        let described = describe(&field.ty);
        Ok(Self {
            ident,
            name: ident.to_string().trim_start_matches("r#").to_owned(),
            doc: doc(&field.attrs),
            ty: &field.ty,
            cddl: options.ty.unwrap_or(described.cddl),
            optional: described.optional,
            default: options.default.is_some(),
            bytes: described.bytes,
        })
    }

    fn declaration(&self) -> TokenStream {
        let Self { ident, ty, .. } = self;
        let with = self.bytes.then(|| quote!(#[serde(with = "::annulus_guest::__private::serde_bytes")]));
        // `with` would turn off serde's own rule that an absent `Option` is `None`.
        let default = (self.optional || self.default).then(|| quote!(#[serde(default)]));
        quote!(#with #default #ident: #ty)
    }

    fn check(&self) -> TokenStream {
        let Self { name, ty, .. } = self;
        let ty = match (self.bytes, self.optional) {
            (true, false) => quote!(::annulus_guest::ByteBuf),
            (true, true) => quote!(::core::option::Option<::annulus_guest::ByteBuf>),
            (false, _) => quote!(#ty),
        };
        quote!((#name, ::annulus_guest::__private::check::<#ty>))
    }
}

/// Return the name of the parameter that routes the command, if one does.
fn key_of(variant: &Variant, options: &CommandOptions, params: &[Param<'_>]) -> Result<Option<String>> {
    let named = |wanted: &str| params.iter().find(|param| param.name == wanted);
    let key = match (&options.key, &options.route) {
        (Some(key), Some(_)) => {
            return Err(Error::new_spanned(key, "a command is routed by a key, or everywhere, or anywhere"));
        }
        (Some(key), None) => match named(&key.to_string()) {
            Some(param) => param,
            None => return Err(Error::new_spanned(key, "this is not a field of the command")),
        },
        (None, None) => match named("key") {
            Some(param) => param,
            None => return Ok(None),
        },
        (None, Some(_)) => return Ok(None),
    };
    if key.optional || key.default {
        return Err(Error::new_spanned(variant, "the key of a command cannot be left out"));
    }
    if !matches!(key.cddl.as_str(), "text" | "bytes" | "int" | "uint") {
        let message = format!("a command is routed by text, bytes, int or uint, not by {}", key.cddl);
        return Err(Error::new_spanned(key.ty, message));
    }
    Ok(Some(key.name.clone()))
}

/// Convert a name to kebab-case: `GetAll` -> `get-all`, `HTTPGet` -> `http-get`.
fn kebab_case(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let starts_word = letter.is_uppercase()
            && at > 0
            && (!letters[at - 1].is_uppercase()
                || letters.get(at + 1).is_some_and(|next| next.is_lowercase()));
        if starts_word {
            out.push('-');
        }
        out.extend(letter.to_lowercase());
    }
    out.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::kebab_case;

    #[test]
    fn names_of_commands_are_kebab_case() {
        for (variant, name) in [("Put", "put"), ("GetAll", "get-all"), ("HTTPGet", "http-get"), ("V2", "v2")]
        {
            assert_eq!(kebab_case(variant), name);
        }
    }
}
