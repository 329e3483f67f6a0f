//! `token`: lets nodes join.

use std::time::Duration;

use super::duration::{millis, parse_duration, spoken};
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::TokenRow;

/// Print a token that lets nodes join: as many as say it before it ends.
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
        "It lets any number of nodes join for {}. Say to each of them: annulus join {} --token TOKEN --data \
         ITS_DATA_DIR",
        spoken(args.ttl),
        row.address,
    ));
    context.output.show(&row, || row.token.clone())
}
