//! `token`: prints a token with which nodes can join.

use std::time::Duration;

use super::duration::{millis, parse_duration, spoken};
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::TokenRow;

/// Print a token with which any number of nodes can join until it expires.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Time for which the token is valid
    #[arg(long, value_parser = parse_duration, default_value = "10m")]
    ttl: Duration,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let row: TokenRow = connection.ask(&AdminRequest::Token { ttl_ms: millis(args.ttl) }).await?;
    // stdout gets the token alone, so that scripts can use the output unchanged.
    context.output.note(&format!(
        "This token lets any number of nodes join for {}. Run for each of them: annulus join {} --token TOKEN \
         --data ITS_DATA_DIR",
        spoken(args.ttl),
        row.address,
    ));
    context.output.show(&row, || row.token.clone())
}
