//! Builds components from the Cargo projects of guests.
//!
//! Three build methods are tried in this order:
//!
//! 1. `installed`: the target `wasm32-wasip2` is already installed.
//! 2. `rustup`: `rustup target add wasm32-wasip2`, then as above.
//! 3. `debian`: Debian's packages `rustc-web cargo-web rust-web-src`, installed if the process runs as root
//!    and the user agrees. The standard library is built from source for `wasm32-unknown-unknown`, and the
//!    core module is wrapped as a component here.
//!
//! `ANNULUS_GUEST_TOOLCHAIN` set to one of these names restricts the build to that method.
//!
//! Builds have a separate target directory (`guests`, within the project's), so that they never wait for the
//! lock of a Cargo that runs this process.

mod bundled;
mod child;
mod component;
mod error;
mod project;
mod scaffold;
mod standalone;
mod way;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

pub use bundled::{BundledGuests, bundled_guests};
pub use component::{ComponentInterfaces, Interface, interfaces};
pub use error::BuildError;
pub use scaffold::{ScaffoldError, check_name, scaffold};
pub use way::{TOOLCHAIN_VARIABLE, Way};

use child::Child;
use project::Project;

/// Time limit of one build. A first build compiles the SDK's dependencies, and with the third method the
/// standard library, which takes a minute or two on two cores. The limit allows for a machine ten times
/// slower.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A component on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Absolute path of the file.
    pub component: PathBuf,
    /// SHA-256 of the file in lower-case hex; the cluster identifies the component by it.
    pub digest: String,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// Build the guest project at `path`, which is its directory or its `Cargo.toml`. Blocks until the build
/// ends. `progress` is called with status lines for people.
///
/// # Errors
/// See [`BuildError`]. No new component is written; an older one stays in place.
pub fn build_component(path: &Path, progress: &dyn Fn(&str)) -> Result<Built, BuildError> {
    build_component_with(path, &[], progress)
}

/// Build as [`build_component`] does, with Cargo features. The features become part of the file's name.
///
/// # Errors
/// As for [`build_component`].
pub fn build_component_with(
    path: &Path,
    features: &[&str],
    progress: &dyn Fn(&str),
) -> Result<Built, BuildError> {
    build_component_asking(path, features, progress, &|_| true)
}

/// Build as [`build_component_with`] does, and install system packages only with consent: `may_install`
/// returns true for their names, or `ANNULUS_GUEST_TOOLCHAIN` selects the `debian` method.
///
/// # Errors
/// As for [`build_component`].
pub fn build_component_asking(
    path: &Path,
    features: &[&str],
    progress: &dyn Fn(&str),
    may_install: &dyn Fn(&str) -> bool,
) -> Result<Built, BuildError> {
    let project = Project::at(path)?;
    let way = Way::choose(&project.directory, progress, may_install)?;
    let module = compile(&project, &way, features, progress)?;
    let bytes = std::fs::read(&module).map_err(|error| BuildError::io(&module, error))?;
    let component = component::finish(bytes)?;
    let name = [&[project.package.as_str()], features].concat().join("-");
    let path = project.target_directory(&way).join(format!("{name}.component.wasm"));
    write_whole(&path, &component)?;
    let digest = Sha256::digest(&component).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Built { component: path, digest, bytes: component.len() as u64 })
}

/// Run Cargo and return the path of the wasm file that it built.
fn compile(
    project: &Project,
    way: &Way,
    features: &[&str],
    progress: &dyn Fn(&str),
) -> Result<PathBuf, BuildError> {
    let mut command = way.cargo(&project.directory);
    command.arg("build").arg("--manifest-path").arg(&project.manifest);
    command.arg("--target-dir").arg(project.target_directory(way));
    command.args(["--lib", "--message-format=json-render-diagnostics"]);
    command.args(project.profile_arguments());
    command.args(way.build_arguments());
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    progress(&format!("building {} ({way})", project.package));
    let ended = Child::run("cargo build", command, BUILD_LIMIT, &|line| {
        if let Some(step) = build_step(line) {
            progress(step);
        }
    })?;
    if !ended.success {
        return Err(BuildError::Compile { output: ended.stderr });
    }
    project.artifact(&ended.stdout)
}

/// Return the line if it is one of Cargo's own progress lines.
fn build_step(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let steps = ["Compiling", "Downloading", "Downloaded", "Updating", "Locking", "Blocking", "Finished"];
    steps.iter().any(|step| line.starts_with(step)).then_some(line)
}

/// Write a file and rename it into place, so that the path never refers to a partial file.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let half = path.with_extension(format!("half-{}", std::process::id()));
    std::fs::write(&half, bytes)
        .and_then(|()| std::fs::rename(&half, path))
        .map_err(|error| BuildError::io(path, error))
}
