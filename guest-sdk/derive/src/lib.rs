//! `#[derive(Commands)]`: generates a module's description and the decoder of its calls from an enum and its
//! doc comments.

mod attributes;
mod expand;
mod types;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Make an enum the commands of a vnode, with one variant for each command.
///
/// A command's name is the variant's name in kebab-case. Its parameters are the fields, in order, and its
/// help is the doc comments. A field `key` routes the command; without one the command goes to any partition.
/// On a variant, `#[command(...)]` takes:
///
/// - `write`, `update`: the command changes items (without either, it reads); `update` decides on the items
///   that it reads, so the host first brings the key's items up to date
/// - `everywhere`: every partition answers, through `Coverage`; `anywhere`: any one partition answers
/// - `frees`: the command needs no more memory than it releases (it deletes), so a vnode whose memory is
///   nearly full still runs it
/// - `key = field`: the command is routed by that field instead
/// - `name = "other-name"`, `reply = "text"` (the reply's type as CDDL)
///
/// On a field, `#[arg(...)]` takes `ty = "text"` (its type as CDDL, if the derive cannot infer it) and
/// `default` (it may be left out; an `Option` always may).
#[proc_macro_derive(Commands, attributes(command, arg))]
pub fn commands(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::commands(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}
