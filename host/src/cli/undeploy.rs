//! `undeploy`: the end of a module.

use serde_json::json;

use super::{CliError, Context};
use annulus_admin::AdminRequest;

/// End a module and delete its items.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its name
    module: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    context.confirm(&format!("Every item of {} is deleted on every node.", args.module))?;
    let connection = context.connect().await?;
    let () = connection.ask(&AdminRequest::Undeploy { module: args.module.clone() }).await?;
    context.output.show(&json!({"undeployed": args.module}), || format!("{} is gone", args.module))
}
