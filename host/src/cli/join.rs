//! `join`: said to the node that joins.

use std::time::Duration;

use super::duration::{millis, parse_duration};
use super::{CliError, Context};
use crate::admin::AdminRequest;
use crate::admin::rows::MemberRow;

/// Make this node part of another node's cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `--listen` address of a member of the cluster to join
    #[arg(value_name = "ADDR")]
    address: String,
    /// What `annulus token` printed at that cluster
    #[arg(long, env = "ANNULUS_TOKEN", hide_env_values = true)]
    token: String,
    /// Give up the modules and items that the node's own cluster of one holds
    #[arg(long)]
    discard: bool,
    /// How long to wait until it holds its share
    #[arg(long, value_parser = parse_duration, default_value = "5m")]
    timeout: Duration,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.discard {
        context.confirm("The node gives up every module and item of its own cluster.")?;
    }
    let connection = context.connect().await?;
    let request = AdminRequest::Join {
        address: args.address,
        token: args.token,
        discard: args.discard,
        timeout_ms: millis(args.timeout),
    };
    let member: MemberRow = connection.ask(&request).await?;
    context.output.show(&member, || format!("{} is a member and owns {} partitions", member.node, member.owned))
}
