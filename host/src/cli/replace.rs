//! `replace`: replaces a node with one that holds nothing yet.

use super::clear::show_staged;
use super::patience::Patience;
use super::{CliError, Context, commit};
use annulus_admin::plan_rows::{CommittedRow, PlanRow, StagedRow};
use annulus_admin::{AdminRequest, PlanOf};

/// Replace a node with one that holds nothing yet; the old node leaves.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node that leaves
    #[arg(value_name = "OLD")]
    old: String,
    /// Name of the node that takes its place: one that joined with --stage
    #[arg(value_name = "NEW")]
    new: String,
    /// Stage the replacement for the next commit
    #[arg(long)]
    stage: bool,
    #[command(flatten)]
    patience: Patience,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let request = AdminRequest::Replace {
        old: args.old.clone(),
        new: args.new.clone(),
        stage: args.stage,
        wait: args.patience.waits(),
        timeout_ms: args.patience.timeout_ms(),
    };
    if args.stage {
        let row: StagedRow = connection.ask(&request).await?;
        return show_staged(&row, context);
    }
    let of = Some(PlanOf::Replace(args.old, args.new));
    let plan: PlanRow = connection.ask(&AdminRequest::Plan { shown: false, of }).await?;
    // A node that is up hands its items off: the plan warns of a loss, and needs a confirmation, only if OLD is
    // down.
    if let Some(loss) = plan.warnings.iter().find(|warning| warning.code == "possible-loss") {
        context.confirm(&format!("{}.", loss.message))?;
    }
    let row: CommittedRow = connection.ask(&request).await?;
    context.output.show(&row, || commit::render(&row))
}
