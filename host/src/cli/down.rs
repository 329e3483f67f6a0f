//! `down`: marks a node that does not answer as down.

use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::MemberRow;
use annulus_core::wording::counted;

/// Mark a node that does not answer as down: it keeps its partitions, and is a member again when it returns.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node
    #[arg(id = "away", value_name = "NODE")]
    name: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let row: MemberRow = connection.ask(&AdminRequest::Down { node: args.name }).await?;
    context.output.show(&row, || match row.status.as_str() {
        "down" => format!("{} is marked down; it keeps its {}", row.node, counted(row.owned, "partition")),
        status => format!("{} is {status}: it has answered since", row.node),
    })
}
