//! `clear`: discards the staged changes.

use super::plan::change_text;
use super::quote::quoted;
use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::plan_rows::StagedRow;

/// Discard the staged changes; nodes that joined with --stage keep waiting.
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
        let mut text = format!("discarded: {}", changes.join(", "));
        for waiting in row.changes.iter().filter(|change| change.change == "join") {
            let name = &waiting.node;
            text.push_str(&format!(
                "\n{name} keeps waiting and owns nothing. To stage its join again, run `annulus join ADDR --token \
                 TOKEN --stage` on it once more; to take it in at once, run the same without --stage; to remove it, \
                 run `annulus leave {}`",
                quoted(name)
            ));
        }
        text
    })
}

/// Show the staged changes: the answer of every verb that was given `--stage`.
pub(super) fn show_staged(row: &StagedRow, context: &Context) -> Result<(), CliError> {
    context.output.show(row, || {
        let changes: Vec<String> = row.changes.iter().map(change_text).collect();
        format!("staged: {}\n`annulus plan` shows the effect", changes.join(", "))
    })
}
