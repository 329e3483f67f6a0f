//! `modules`: what is deployed.

use std::collections::BTreeMap;

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
    let details = rows.iter().filter_map(details);
    format!("{table}{}{}", unable.collect::<String>(), details.collect::<String>())
}

/// A module's settings, and what it can go back to.
fn details(row: &ModuleRow) -> Option<String> {
    let settings = |all: &BTreeMap<String, String>| {
        all.iter().map(|(name, value)| format!(" {name}={value}")).collect::<String>()
    };
    let mut text = String::new();
    if !row.settings.is_empty() {
        text.push_str(&format!("\n{} is set{}", row.name, settings(&row.settings)));
    }
    for earlier in &row.earlier {
        let digest: String = earlier.digest.chars().take(12).collect();
        let set = earlier.settings.as_ref().map(settings).unwrap_or_default();
        text.push_str(&format!(
            "\n{} --to {}: {} ({digest}){set}",
            row.name, earlier.version, earlier.guest_version
        ));
    }
    (!text.is_empty()).then_some(text)
}
