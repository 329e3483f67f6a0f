//! The `annulus` binary: both a node and the command line that talks to nodes.

use std::process::ExitCode;

fn main() -> ExitCode {
    annulus::cli::main()
}
