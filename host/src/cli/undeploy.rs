//! `undeploy`: removes a module and deletes its items.

use serde_json::json;

use super::{CliError, Context};
use annulus_admin::AdminRequest;

/// Remove a module and delete its items.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the module
    module: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    context.confirm(&format!("Every item of {} will be deleted on every node.", args.module))?;
    let connection = context.connect().await?;
    let () = connection.ask(&AdminRequest::Undeploy { module: args.module.clone() }).await?;
    context.output.show(&json!({"undeployed": args.module}), || format!("{} is undeployed", args.module))
}
