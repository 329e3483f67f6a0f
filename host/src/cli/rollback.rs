//! `rollback`: an earlier release.

use std::time::Duration;

use super::duration::{millis, parse_duration};
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
    /// How long to wait until every node runs it
    #[arg(long, value_parser = parse_duration, default_value = "2m")]
    timeout: Duration,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let timeout_ms = Some(millis(args.timeout));
    let request = AdminRequest::Rollback { module: args.module, to: args.to, timeout_ms };
    let row: DeployedRow = connection.ask(&request).await?;
    context.output.show(&row, || super::deploy::render(&row))
}
