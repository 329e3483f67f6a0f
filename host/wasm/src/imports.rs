//! The interfaces that a component may import.

use super::error::InvalidComponent;

/// The part of WASI 0.2 that is given to guests. Standard libraries import it whether a program uses it or not. Most
/// of it is empty: no files, no environment, no arguments, an empty stdin.
///
/// - `cli`: an exit is a trap, which stderr explains; stdout is discarded.
/// - `clocks`, `random`: for hash tables and time-outs of standard libraries. A vnode should use the contract's
///   `context` instead.
/// - `filesystem`: nothing can be opened, because no directory is preopened.
/// - `io`: the streams and polls that the other interfaces use.
const WASI: [&str; 20] = [
    "cli/environment",
    "cli/exit",
    "cli/stderr",
    "cli/stdin",
    "cli/stdout",
    "cli/terminal-input",
    "cli/terminal-output",
    "cli/terminal-stderr",
    "cli/terminal-stdin",
    "cli/terminal-stdout",
    "clocks/monotonic-clock",
    "clocks/wall-clock",
    "filesystem/preopens",
    "filesystem/types",
    "io/error",
    "io/poll",
    "io/streams",
    "random/insecure",
    "random/insecure-seed",
    "random/random",
];

/// Refuse an import that is not given to vnodes.
///
/// # Errors
/// If the import is not one of them; the error names it.
pub(super) fn check(name: &str) -> Result<(), InvalidComponent> {
    let of_contract = name.starts_with("annulus:vnode/");
    let of_wasi = name.strip_prefix("wasi:").and_then(|rest| rest.split_once('@'));
    if of_contract
        || of_wasi
            .is_some_and(|(interface, version)| version.starts_with("0.2.") && WASI.contains(&interface))
    {
        return Ok(());
    }
    Err(InvalidComponent::DoesNotFit(format!(
        "it imports {name}, which a vnode is not given. A component may import annulus:vnode and, of wasi 0.2, {}; \
         leave the import out (tools for Python and JavaScript have an option to replace WASI by stubs)",
        WASI.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn imports_outside_the_contract_and_the_allowed_part_of_wasi_are_refused() {
        for name in ["annulus:vnode/storage@0.1.0", "wasi:io/poll@0.2.6", "wasi:cli/exit@0.2.0"] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in [
            "wasi:sockets/tcp@0.2.6",
            "wasi:http/outgoing-handler@0.2.0",
            "wasi:io/poll@0.3.0",
            "wasi:io/poll",
            "wasi:io/pollute@0.2.0",
            "annulus:vnode-2/storage@0.1.0",
            "docs:adder/add@0.1.0",
            "log",
        ] {
            let refused = check(name).unwrap_err();
            assert!(matches!(&refused, InvalidComponent::DoesNotFit(why) if why.contains(name)), "{refused}");
        }
    }
}
