//! `new`: a guest project that builds, deploys and answers as it is.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{CliError, Context};
use annulus_toolchain::{ScaffoldError, scaffold};

/// Start a guest project.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The module's name: lower-case letters, digits, dashes
    name: String,
    /// The project's directory, which must not be there yet [default: ./NAME]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let Args { name, path } = args;
    let directory = path.unwrap_or_else(|| Path::new(".").join(&name));
    scaffold(&name, &directory).map_err(|error| match error {
        ScaffoldError::Name { .. } => CliError::Usage(error.to_string()),
        ScaffoldError::Exists(_) | ScaffoldError::Io { .. } => CliError::Other(error.to_string()),
    })?;
    let whole = directory.canonicalize().unwrap_or_else(|_| directory.clone());
    context.output.show(&json!({"name": name, "path": whole}), || {
        format!(
            "{}\n\n  cd {}\n  cargo test\n  annulus build\n  \
             annulus deploy target/guests/{name}.component.wasm\n  annulus call {name} add clicks",
            whole.display(),
            directory.display(),
        )
    })
}
