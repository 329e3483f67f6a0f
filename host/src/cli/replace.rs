//! `replace`: a node that holds nothing takes another's places.

use super::clear::show_staged;
use super::patience::Patience;
use super::{CliError, Context, commit};
use annulus_admin::plan_rows::{CommittedRow, PlanRow, StagedRow};
use annulus_admin::{AdminRequest, PlanOf};

/// Let a node that holds nothing take the places of another, which goes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node that goes
    #[arg(value_name = "OLD")]
    old: String,
    /// Name of the node that comes: one that joined with --stage
    #[arg(value_name = "NEW")]
    new: String,
    /// Only with the next commit
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
    // Of a node that is up nothing is lost.
    if let Some(loss) = plan.warnings.iter().find(|warning| warning.code == "possible-loss") {
        context.confirm(&format!("{}.", loss.message))?;
    }
    let row: CommittedRow = connection.ask(&request).await?;
    context.output.show(&row, || commit::render(&row))
}
