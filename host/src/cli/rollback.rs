//! `rollback`: an earlier release.

use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::DeployedRow;

/// Go back to an earlier release of a module, with the settings that it had.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its name
    module: String,
    /// The version to go back to, of those that `annulus modules` shows [default: the one before]
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let request = AdminRequest::Rollback { module: args.module, to: args.to };
    let row: DeployedRow = connection.ask(&request).await?;
    context.output.show(&row, || super::deploy::render(&row))
}
