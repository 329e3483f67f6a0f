//! `recover`: goes on without a majority of the voters that is lost for good.

use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::recover::RecoverRow;

/// Go on without a majority of the voters that is lost for good.
///
/// Said to a survivor. Without --force it only shows what that would mean. What was agreed on
/// last may be forgotten, and whoever still runs out of reach gives way when it is heard of again:
/// first try to bring the lost nodes back. Those that have a majority, and whose operator has removed
/// this node meanwhile, do not give way: it ends when it hears from them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do it
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let found: RecoverRow = connection.ask(&AdminRequest::Recover { basis: None }).await?;
    if !args.force {
        return context.output.show(&found, || {
            let end = match found.needed {
                true => "Nothing was done; --force does it.",
                false => "Nothing was done, and nothing is to be: a majority of the voters is there.",
            };
            format!("{}\n{end}", assumptions(&found))
        });
    }
    if found.needed {
        context.output.note(&assumptions(&found));
        context.confirm("The cluster goes on from there. The lost nodes give way when they come back.")?;
    }
    let request = AdminRequest::Recover { basis: Some(found.basis) };
    let done: RecoverRow = connection.ask(&request).await?;
    context.output.show(&done, || {
        let late: Vec<&str> =
            done.answered.iter().filter(|node| !done.adopted.contains(node)).map(String::as_str).collect();
        let mut text = format!("the cluster goes on with {}", done.adopted.join(", "));
        if !late.is_empty() {
            text.push_str(&format!("\n{} will follow when they hear of it", late.join(", ")));
        }
        if !done.lost.is_empty() {
            text.push_str(&format!(
                "\nstart {} again if you can: they take over the newer state and serve what they hold of \
                 partitions that are theirs in it; what they hold of others is kept aside and shown as a \
                 possible loss. `annulus remove NODE` gives up one that is gone",
                done.lost.join(", ")
            ));
        }
        text
    })
}

fn assumptions(row: &RecoverRow) -> String {
    let list = |names: &[String]| if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
    let ids = |ids: &[u16]| match ids {
        [] => "none".to_owned(),
        ids => ids.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut text = format!(
        "It takes for true that\n\
         \x20 survivors      {}\n\
         \x20 lost           {}\n\
         \x20 newest state   that of {}, change {}; later ones, if there were any, are forgotten\n",
        list(&row.answered),
        list(&row.lost),
        row.from,
        row.index,
    );
    for (node, index) in &row.behind {
        text.push_str(&format!(
            "                 {node} knows changes up to {index} and takes the newer ones over\n"
        ));
    }
    text.push_str(&format!(
        "  no owner       partitions {}: they answer nothing until their node is back or removed\n\
         \x20 given up       transfers of partitions {}: they stay with who has them\n",
        ids(&row.without_owner),
        ids(&row.cancelled),
    ));
    text
}
