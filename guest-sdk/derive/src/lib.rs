//! `#[derive(Commands)]`: from an enum and its doc comments, a module's description and the decoder
//! of its calls.

mod attributes;
mod expand;
mod types;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Makes an enum the commands of a vnode: one variant for each command.
///
/// The command's name is the variant's in kebab-case, its parameters are the fields, in order, and
/// doc comments become help. A field `key` is what routes the command; without one it goes to any
/// partition. On a variant, `#[command(...)]` takes:
///
/// - `write`, `update`: the command changes items (without it, it reads); `update` decides on what
///   it reads, so the host brings the key's items up to date first
/// - `everywhere`: every partition answers, through `Coverage`; `anywhere`: one does, whichever
/// - `frees`: the command needs no more memory than it gives back (it deletes), so that a vnode whose
///   memory is nearly full still runs it
/// - `key = field`: routes by that field instead
/// - `name = "other-name"`, `reply = "text"` (the reply's type as CDDL)
///
/// On a field, `#[arg(...)]` takes `ty = "text"` (its type as CDDL, where the derive cannot know)
/// and `default` (may be left out; an `Option` always may).
#[proc_macro_derive(Commands, attributes(command, arg))]
pub fn commands(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::commands(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}
