//! `remove`: removes and bans a node that is gone for good.

use super::clear::show_staged;
use super::patience::Patience;
use super::{CliError, Context, commit};
use annulus_admin::plan_rows::{CommittedRow, PlanRow, StagedRow};
use annulus_admin::{AdminRequest, PlanOf};

/// Remove a node that is gone for good: it is banned, and other nodes take over its partitions.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node
    #[arg(id = "gone", value_name = "NODE")]
    name: String,
    /// Stage the removal for the next commit
    #[arg(long)]
    stage: bool,
    #[command(flatten)]
    patience: Patience,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let request = AdminRequest::Remove {
        node: args.name.clone(),
        stage: args.stage,
        wait: args.patience.waits(),
        timeout_ms: args.patience.timeout_ms(),
    };
    if args.stage {
        let row: StagedRow = connection.ask(&request).await?;
        return show_staged(&row, context);
    }
    let of = Some(PlanOf::Remove(args.name.clone()));
    let plan: PlanRow = connection.ask(&AdminRequest::Plan { shown: false, of }).await?;
    let loss = plan.warnings.iter().find(|warning| warning.code == "possible-loss");
    let loss = loss.map(|loss| format!(" {}.", loss.message)).unwrap_or_default();
    context.confirm(&format!("{} never comes back: its peers refuse it from then on.{loss}", args.name))?;
    let row: CommittedRow = connection.ask(&request).await?;
    context.output.show(&row, || commit::render(&row))
}
