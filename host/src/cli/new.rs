//! `new`: a guest project that builds, deploys and answers as it is.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::quote::quoted_path;
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
    // Where `annulus build` puts it: Cargo's own variable moves that.
    let target = std::env::var_os("CARGO_TARGET_DIR").filter(|path| !path.is_empty());
    let target = target.map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let component = target.join("guests").join(format!("{name}.component.wasm"));
    let whole = directory.canonicalize().unwrap_or_else(|_| directory.clone());
    context.output.show(&json!({"name": name, "path": whole}), || {
        format!(
            "{}\n\n  cd {}\n  cargo test\n  annulus build\n  \
             annulus deploy {}\n  annulus call {name} add clicks",
            whole.display(),
            quoted_path(&directory),
            quoted_path(&component),
        )
    })
}
