//! `recover`: recovers the cluster after the permanent loss of a majority of its voters.

use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::recover::RecoverRow;

/// Recover the cluster after the permanent loss of a majority of its voters.
///
/// Run it against a surviving node. Without --force it only shows the consequences. The newest committed
/// changes may be lost, and nodes that still run out of reach adopt the recovered state when they reconnect:
/// first try to bring the lost nodes back. Nodes that have a majority among themselves, and whose operator has
/// removed this node in the meantime, do not adopt it: this node stops when it hears from them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Carry out the recovery
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let found: RecoverRow = connection.ask(&AdminRequest::Recover { basis: None }).await?;
    if !args.force {
        return context.output.show(&found, || {
            let end = match found.needed {
                true => "Nothing was done; --force carries it out.",
                false => "Nothing was done, and no recovery is needed: a majority of the voters is up.",
            };
            format!("{}\n{end}", assumptions(&found))
        });
    }
    if found.needed {
        context.output.note(&assumptions(&found));
        context
            .confirm("The cluster continues from this state. The lost nodes adopt it when they return.")?;
    }
    let request = AdminRequest::Recover { basis: Some(found.basis) };
    let done: RecoverRow = connection.ask(&request).await?;
    context.output.show(&done, || {
        let late: Vec<&str> =
            done.answered.iter().filter(|node| !done.adopted.contains(node)).map(String::as_str).collect();
        let mut text = format!("the cluster continues with {}", done.adopted.join(", "));
        if !late.is_empty() {
            text.push_str(&format!("\n{} will follow when they learn of it", late.join(", ")));
        }
        if !done.lost.is_empty() {
            text.push_str(&format!(
                "\nstart {} again if you can: they adopt the recovered state and serve the partitions that it assigns \
                 to them; their items of other partitions are kept aside and shown as a possible loss. \
                 `annulus remove NODE` removes one that is gone for good",
                done.lost.join(", ")
            ));
        }
        text
    })
}

fn assumptions(row: &RecoverRow) -> String {
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let ids = |ids: &[u16]| match ids {
        [] => "none".to_owned(),
        ids => ids.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut text = format!(
        "The recovery assumes\n\
         \x20 survivors      {}\n\
         \x20 lost           {}\n\
         \x20 newest state   that of {}, change {}; later changes, if there were any, are lost\n",
        list(&row.answered),
        list(&row.lost),
        row.from,
        row.index,
    );
    for (node, index) in &row.behind {
        text.push_str(&format!(
            "                 {node} has changes up to {index} and adopts the newer ones\n"
        ));
    }
    text.push_str(&format!(
        "  no owner       partitions {}: they are not served until their node returns or is removed\n\
         \x20 cancelled      transfers of partitions {}: these stay with their present owners\n",
        ids(&row.without_owner),
        ids(&row.cancelled),
    ));
    text
}
