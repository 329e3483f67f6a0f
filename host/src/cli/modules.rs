//! `modules`: lists the deployed modules.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{CliError, Context, Table};
use annulus_admin::AdminRequest;
use annulus_admin::rows::ModuleRow;
use annulus_wasm::Limits;

/// List the deployed modules.
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
        let current = row.versions.values().filter(|version| **version == row.version).count();
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

/// Return the lines below the table for one module: a call limit that is not the default, the settings, and
/// the earlier releases that `rollback --to` accepts. `None` if there are none.
fn details(row: &ModuleRow) -> Option<String> {
    let settings = |all: &BTreeMap<String, String>| {
        all.iter().map(|(name, value)| format!(" {name}={value}")).collect::<String>()
    };
    let mut text = String::new();
    let limit =
        |ms: Option<u64>| ms.map(Duration::from_millis).filter(|time| *time != Limits::default().call_time);
    if let Some(time) = limit(row.call_ms) {
        text.push_str(&format!("\na call of {} may take {time:?}", row.name));
    }
    if !row.settings.is_empty() {
        text.push_str(&format!("\n{} is set{}", row.name, settings(&row.settings)));
    }
    for earlier in &row.earlier {
        let digest: String = earlier.digest.chars().take(12).collect();
        let set = earlier.settings.as_ref().map(settings).unwrap_or_default();
        let calls = limit(earlier.call_ms).map_or_else(String::new, |time| format!(" --call-limit {time:?}"));
        text.push_str(&format!(
            "\n{} --to {}: {} ({digest}){set}{calls}",
            row.name, earlier.version, earlier.guest_version
        ));
    }
    (!text.is_empty()).then_some(text)
}
