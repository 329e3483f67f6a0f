//! `new`: creates a guest project that builds and deploys without changes.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::quote::quoted_path;
use super::{CliError, Context};
use annulus_toolchain::{ScaffoldError, scaffold};

/// Create a guest project.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the module: lower-case letters, digits and dashes
    name: String,
    /// Directory of the project, which must not exist yet [default: ./NAME]
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
    // The path to which `annulus build` writes the component; Cargo's own variable moves it.
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
