//! `demo`: three nodes on this machine and a guided tour of what they do.
//!
//! The nodes are processes of this same binary, on the tutorial's ports, and everything that
//! the tour shows is this same command line run for real: its lines can be copied. The nodes
//! end with the demo, whatever ends it.

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
    /// Where the nodes' data and the built guests go; what a former demo left there is removed
    #[arg(long, default_value = "./annulus-demo")]
    dir: PathBuf,
    /// Added to the tutorial's ports (8199, 8299, 8399), where those are taken
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
    // Dropping `nodes` ends their processes, on every way out of here.
    tokio::select! {
        result = whole => result,
        _ = interrupted => {
            output.note("\nstopping the three nodes");
            Ok(())
        }
    }
}
