//! `completions`: prints completion scripts for shells.

use clap::CommandFactory;

use super::{Cli, CliError, Context};

/// Print the completion script for a shell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell to complete for
    shell: clap_complete::Shell,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "annulus", &mut script);
    context.output.line(String::from_utf8_lossy(&script).trim_end())
}
