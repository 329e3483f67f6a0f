//! `rollback`: makes an earlier release of a module current again.

use std::time::Duration;

use super::duration::{millis, parse_duration};
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::DeployedRow;

/// Return a module to an earlier release, with the settings of that release.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the module
    module: String,
    /// The version to return to, one of those that `annulus modules` shows [default: the previous one]
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
    /// Longest time to wait until every node runs the release
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
