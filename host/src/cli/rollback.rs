//! `rollback`: the release before.

use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::DeployedRow;

/// Go back to a module's release before.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its name
    module: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let row: DeployedRow = connection.ask(&AdminRequest::Rollback { module: args.module }).await?;
    context.output.show(&row, || super::deploy::render(&row))
}
