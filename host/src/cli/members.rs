//! `members`: lists the nodes of the cluster.

use owo_colors::{OwoColorize, Stream};

use super::{CliError, Context, Table};
use annulus_admin::AdminRequest;
use annulus_admin::rows::MemberRow;

/// List the nodes of the cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Include removed nodes
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let mut rows: Vec<MemberRow> = connection.ask(&AdminRequest::Members).await?;
    rows.retain(|row| args.all || row.status != "removed");
    context.output.show(&rows, || render(&rows))
}

pub(super) fn render(rows: &[MemberRow]) -> String {
    let mut table =
        Table::new(&["node", "status", "alive", ">owned", ">replicas", "zone", ">weight", "listen", ""]);
    for row in rows {
        let alive = match (row.alive, row.status.as_str()) {
            (true, _) => "yes".to_owned(),
            (false, "removed") => "-".to_owned(),
            (false, _) => "no".if_supports_color(Stream::Stdout, |no| no.red()).to_string(),
        };
        table.row([
            row.node.clone(),
            match &row.staged {
                Some(change) => format!("{} ({change} staged)", row.status),
                None => row.status.clone(),
            },
            alive,
            row.owned.to_string(),
            row.replicas.to_string(),
            row.zone.clone().unwrap_or_else(|| "-".to_owned()),
            row.weight.to_string(),
            row.listen.clone(),
            if row.claimant { "claimant".to_owned() } else { String::new() },
        ]);
    }
    let mut text = table.to_string();
    for (row, why) in rows.iter().filter_map(|row| Some((row, row.unreachable.as_ref()?))) {
        text.push_str(&format!("\n{} at {} cannot be reached from here: {why}", row.node, row.listen));
    }
    text
}
