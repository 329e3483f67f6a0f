//! `demo`: runs three nodes on this machine and a guided tour of their features.
//!
//! The nodes are processes of this binary on the riak_core tutorial's ports. Every command line that the
//! tour shows is really run and can be copied. The nodes end with the demo, however it ends.

mod load;
mod nodes;
mod tour;

use std::path::PathBuf;

use super::{CliError, Context};

/// Run three nodes and a guided tour: join, put and get, handoff, a hot swap under load.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after the tour instead of staying up
    #[arg(long)]
    exit: bool,
    /// Directory for the nodes' data and the built guests; the data of an earlier demo there is deleted
    #[arg(long, default_value = "./annulus-demo")]
    dir: PathBuf,
    /// Number to add to the tutorial's ports (8199, 8299, 8399), if those are taken
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..50_000))]
    port_offset: u16,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let (exit, output) = (args.exit, context.output.clone());
    let mut nodes = nodes::Nodes::prepare(&args.dir, args.port_offset)?;
    let interrupted = tokio::signal::ctrl_c();
    let whole = async {
        let summary = tour::run(&mut nodes, &args.dir, &output).await?;
        output.show(&summary, || tour::farewell(&nodes, exit))?;
        if exit {
            return Ok(());
        }
        nodes.until_one_ends().await
    };
    // Dropping `nodes` kills their processes, whichever way this function returns.
    tokio::select! {
        result = whole => result,
        _ = interrupted => {
            output.note("\nstopping the three nodes");
            Ok(())
        }
    }
}
