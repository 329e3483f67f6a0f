//! `modules`: what is deployed.

use super::{CliError, Context, Table};
use annulus_admin::AdminRequest;
use annulus_admin::rows::ModuleRow;

/// What is deployed.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) async fn run(_: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let rows: Vec<ModuleRow> = connection.ask(&AdminRequest::Modules).await?;
    context.output.show(&rows, || render(&rows))
}

pub(super) fn render(rows: &[ModuleRow]) -> String {
    if rows.is_empty() {
        return "nothing is deployed; try `annulus deploy FILE`".to_owned();
    }
    let mut table =
        Table::new(&["name", ">version", "guest", "digest", ">n", ">r", ">w", "storage", "nodes"]);
    for row in rows {
        let current = row.nodes.values().filter(|digest| **digest == row.digest).count();
        table.row([
            row.name.clone(),
            row.version.to_string(),
            row.guest_version.clone(),
            row.digest.chars().take(12).collect(),
            row.n.to_string(),
            row.r.to_string(),
            row.w.to_string(),
            row.storage.clone(),
            format!("{current}/{}", row.nodes.len()),
        ]);
    }
    let unable = rows.iter().flat_map(|row| {
        row.unable.iter().map(|(node, reason)| format!("\n{node} cannot run {}: {reason}", row.name))
    });
    format!("{table}{}", unable.collect::<String>())
}
