//! `token`: prints a token with which a node can join.

use std::time::Duration;

use super::duration::{millis, parse_duration, spoken};
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::TokenRow;
use annulus_core::state::MAX_TOKEN_USES;

/// Print a token with which one node, or more with --uses, can join until it expires.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Time for which the token is valid
    #[arg(long, value_parser = parse_duration, default_value = "10m")]
    ttl: Duration,
    /// Number of nodes that can join with it [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOKEN_USES)))]
    uses: Option<u32>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let row: TokenRow =
        connection.ask(&AdminRequest::Token { ttl_ms: millis(args.ttl), uses: args.uses }).await?;
    // stdout gets the token alone, so that scripts can use the output unchanged.
    let (who, on) = match row.uses {
        Some(1) => ("one node".to_owned(), "on it"),
        Some(uses) => (format!("{uses} nodes"), "on each of them"),
        None => ("any number of nodes".to_owned(), "on each of them"),
    };
    context.output.note(&format!(
        "This token lets {who} join within {}. Run {on}: annulus join {} --token TOKEN --data ITS_DATA_DIR",
        spoken(args.ttl),
        row.address,
    ));
    context.output.show(&row, || row.token.clone())
}
