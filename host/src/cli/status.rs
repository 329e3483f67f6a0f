//! `status`: shows the state of one node and its view of the cluster.

use owo_colors::{OwoColorize, Stream};

use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::{ReplicasRow, StatusRow};
use annulus_core::wording::counted;

/// Show the state of the addressed node and its view of the cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Acknowledge the possible losses that are shown, both those of removed nodes and those that only this
    /// node reports, so that they are no longer shown
    #[arg(long)]
    acknowledge: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    if args.acknowledge {
        // Acknowledge only the losses up to this status: a loss in the meantime stays.
        let row: StatusRow = connection.ask(&AdminRequest::Status).await?;
        let up_to = row.possible_loss.iter().map(|loss| loss.index).max().unwrap_or(0);
        let incidents = row.newest_incident;
        if up_to > 0 || incidents > 0 {
            let () = connection.ask(&AdminRequest::Acknowledge { up_to, incidents }).await?;
        }
    }
    let row: StatusRow = connection.ask(&AdminRequest::Status).await?;
    context.output.show(&row, || render(&row))
}

pub(super) fn render(row: &StatusRow) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10} {value}\n"));
    line("node", format!("{} (annulus {})", row.node, row.version));
    line("cluster", row.cluster.clone());
    line("listens", format!("{} (QUIC); {} is reserved for HTTP", row.listen, row.http));
    line("members", format!("{}, {} alive", row.members, row.alive));
    line("claimant", row.claimant.clone().unwrap_or_else(|| "none known".to_owned()));
    line(
        "control",
        if row.quorum { "changes can be made" } else { "no quorum: no change can be made" }.to_owned(),
    );
    line("speaks", format!("protocol {}, state levels {}", row.speaks.protocol, row.speaks.levels));
    line(
        "level",
        match row.held_back_by.as_slice() {
            [] => row.level.to_string(),
            behind => format!("{}, held back by {}", row.level, behind.join(", ")),
        },
    );
    line("applied", row.applied.to_string());
    line("ring", format!("{} to change hands", counted(row.pending, "partition")));
    line("transfers", row.transfers.to_string());
    line("modules", row.modules.to_string());
    line(
        "vnodes",
        match row.aside {
            0 => row.vnodes.to_string(),
            aside => format!("{}, and {aside} kept aside after a recovery, which serve nothing", row.vnodes),
        },
    );
    if row.replicas.stores + row.replicas.hints > 0 {
        let ReplicasRow { stores, building, behind, hints } = row.replicas;
        let mut value = format!("{stores} of modules with several");
        if building > 0 {
            value += &format!(", {building} built from others");
        }
        if behind > 0 {
            value += &format!(", {behind} catching up");
        }
        if hints > 0 {
            value += &format!(", {} kept for others", counted(hints, "partition"));
        }
        line("replicas", value);
    }
    for alert in &row.alerts {
        line(&"alert".if_supports_color(Stream::Stdout, |word| word.red()).to_string(), alert.clone());
    }
    text
}
