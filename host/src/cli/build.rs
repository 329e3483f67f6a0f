//! `build`: compiles a guest project to a component.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::path::PathBuf;

use serde_json::json;

use super::{CliError, Context};
use annulus_toolchain::{Built, build_component_asking};

/// Compile a guest project to a component.
///
/// If the Rust toolchain lacks the WebAssembly target, rustup installs it. Without rustup, as root on Debian,
/// apt-get installs it after you confirm, or if --yes is given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The project's directory, which has a Cargo.toml, or any directory below it
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
    let may_install = |packages: &str| {
        // End the current progress display, which would overwrite the question.
        *progress.borrow_mut() = output.progress();
        context.confirm(&format!("apt-get would install {packages}, some 150 MB.")).is_ok()
    };
    let built = build_component_asking(&args.path, &features, &show, &may_install);
    drop(progress);
    let Built { component, digest, bytes } = built.map_err(|error| CliError::Other(error.to_string()))?;
    output.show(&json!({"component": component, "digest": digest, "bytes": bytes}), || {
        format!("{}\n{bytes} bytes, digest {digest}", component.display())
    })
}
