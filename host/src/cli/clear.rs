//! `clear`: forgets what is staged.

use super::plan::change_text;
use super::quote::quoted;
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
        let mut text = format!("forgotten: {}", changes.join(", "));
        for waiting in row.changes.iter().filter(|change| change.change == "join") {
            let name = &waiting.node;
            text.push_str(&format!(
                "\n{name} goes on waiting and owns nothing: say `annulus join ADDR --token TOKEN --stage` to it again \
                 to stage it, the same without --stage to take it in at once, or `annulus leave {}` to let it go",
                quoted(name)
            ));
        }
        text
    })
}

/// The answer of whatever was staged.
pub(super) fn show_staged(row: &StagedRow, context: &Context) -> Result<(), CliError> {
    context.output.show(row, || {
        let changes: Vec<String> = row.changes.iter().map(change_text).collect();
        format!("staged: {}\n`annulus plan` shows what that would do", changes.join(", "))
    })
}
