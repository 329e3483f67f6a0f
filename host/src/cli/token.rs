//! `token`: lets a node join.

use std::time::Duration;

use super::duration::{millis, parse_duration};
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::TokenRow;

/// Print a token that lets one node join.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long the token is good for
    #[arg(long, value_parser = parse_duration, default_value = "10m")]
    ttl: Duration,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let row: TokenRow = connection.ask(&AdminRequest::Token { ttl_ms: millis(args.ttl) }).await?;
    // On stdout the token alone, so that scripts can take it as it is.
    context.output.note(&format!(
        "Say to the node that joins: annulus join {} --token TOKEN --data ITS_DATA_DIR",
        row.address
    ));
    context.output.show(&row, || row.token.clone())
}
