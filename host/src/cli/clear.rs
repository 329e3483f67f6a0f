//! `clear`: forgets what is staged.

use super::plan::change_text;
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::plan_rows::StagedRow;

/// Forget what is staged; nodes that joined with --stage go on waiting.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) async fn run(_: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let row: StagedRow = connection.ask(&AdminRequest::ClearStaged).await?;
    context.output.show(&row, || {
        if row.changes.is_empty() {
            return "nothing was staged".to_owned();
        }
        let changes: Vec<String> = row.changes.iter().map(change_text).collect();
        format!("forgotten: {}", changes.join(", "))
    })
}

/// The answer of whatever was staged.
pub(super) fn show_staged(row: &StagedRow, context: &Context) -> Result<(), CliError> {
    context.output.show(row, || {
        let changes: Vec<String> = row.changes.iter().map(change_text).collect();
        format!("staged: {}\n`annulus plan` shows what that would do", changes.join(", "))
    })
}
