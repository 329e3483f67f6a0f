//! `transfers`: what is moving between nodes.

use super::{CliError, Context, Table};
use crate::admin::AdminRequest;
use crate::admin::rows::TransferRow;

/// What is moving between nodes.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) async fn run(_: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let rows: Vec<TransferRow> = connection.ask(&AdminRequest::Transfers).await?;
    context.output.show(&rows, || render(&rows))
}

pub(super) fn render(rows: &[TransferRow]) -> String {
    if rows.is_empty() {
        return "nothing moves".to_owned();
    }
    let mut table =
        Table::new(&["module", ">partition", "kind", "from", "to", "state", ">items", ">bytes", "error"]);
    for row in rows {
        table.row([
            row.module.clone(),
            row.partition.to_string(),
            row.kind.clone(),
            row.from.clone(),
            row.to.clone(),
            row.state.clone(),
            match row.items_total {
                Some(total) => format!("{}/{total}", row.items_done),
                None => row.items_done.to_string(),
            },
            row.bytes.to_string(),
            row.error.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}
