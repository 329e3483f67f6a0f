//! `leave`: has a node hand off its partitions and leave the cluster.

use super::clear::show_staged;
use super::patience::Patience;
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::plan_rows::StagedRow;
use annulus_admin::rows::MemberRow;

/// Hand off everything that a node holds, then remove it from the cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node [default: the addressed node]
    #[arg(id = "leaver", value_name = "NODE")]
    name: Option<String>,
    /// Stage the leave for the next commit
    #[arg(long)]
    stage: bool,
    #[command(flatten)]
    patience: Patience,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let request = AdminRequest::Leave {
        node: args.name,
        stage: args.stage,
        wait: args.patience.waits(),
        timeout_ms: args.patience.timeout_ms(),
    };
    if args.stage {
        let row: StagedRow = connection.ask(&request).await?;
        return show_staged(&row, context);
    }
    let member: MemberRow = connection.ask(&request).await?;
    context.output.show(&member, || match member.status.as_str() {
        "removed" => format!("{} has handed off everything and left", member.node),
        _ => format!("{} is leaving; `annulus transfers` shows what moves", member.node),
    })
}
