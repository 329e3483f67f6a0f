//! `build`: a guest project becomes a component.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::path::PathBuf;

use serde_json::json;

use super::{CliError, Context};
use annulus_toolchain::{Built, build_component_with};

/// Compile a guest project to a component.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The project: a directory with a Cargo.toml
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Cargo features, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "FEATURES")]
    features: Vec<String>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let output = &context.output;
    let features: Vec<&str> = args.features.iter().map(String::as_str).collect();
    let progress = RefCell::new(output.progress());
    let terminal = std::io::stderr().is_terminal();
    let show = |step: &str| {
        if terminal {
            progress.borrow_mut().set(step, 0, 0);
        } else {
            output.note(step);
        }
    };
    let built = build_component_with(&args.path, &features, &show);
    drop(progress);
    let Built { component, digest, bytes } = built.map_err(|error| CliError::Other(error.to_string()))?;
    output.show(&json!({"component": component, "digest": digest, "bytes": bytes}), || {
        format!("{}\n{bytes} bytes, digest {digest}", component.display())
    })
}
