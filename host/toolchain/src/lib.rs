//! From a guest's Cargo project to a component.
//!
//! A component is built in one of three ways, tried in this order:
//!
//! 1. `installed`: Rust has the target `wasm32-wasip2` already.
//! 2. `rustup`: `rustup target add wasm32-wasip2`, then as above.
//! 3. `debian`: Debian's packages `rustc-web cargo-web rust-web-src` (installed if this is root and its user agrees),
//!    the standard library built from its source for `wasm32-unknown-unknown`, and the core
//!    module wrapped as a component here.
//!
//! `ANNULUS_GUEST_TOOLCHAIN` set to one of these names allows that way alone.
//!
//! Builds have a target directory of their own (`guests` in the project's), so that they never
//! wait for the lock of a Cargo that runs this process.

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

/// A first build compiles the SDK's dependencies, and in the third way the standard library: a
/// minute or two on two cores. This is for a machine that is ten times slower.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A component on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The file, an absolute path.
    pub component: PathBuf,
    /// SHA-256 of its bytes, lower-case hex: what the component is called in a cluster.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
}

/// Builds the guest project at `path`, a directory with a `Cargo.toml` or that file. Blocks.
/// `progress` gets a line now and then, for people.
///
/// # Errors
/// Nothing is left in the place of the component; an older one stays.
pub fn build_component(path: &Path, progress: &dyn Fn(&str)) -> Result<Built, BuildError> {
    build_component_with(path, &[], progress)
}

/// As [`build_component`], with Cargo features, which then are part of the file's name.
///
/// # Errors
/// As [`build_component`].
pub fn build_component_with(
    path: &Path,
    features: &[&str],
    progress: &dyn Fn(&str),
) -> Result<Built, BuildError> {
    build_component_asking(path, features, progress, &|_| true)
}

/// As [`build_component_with`]; packages of the system are installed only where `may_install`, which gets
/// their names, says yes, or `ANNULUS_GUEST_TOOLCHAIN` names that way.
///
/// # Errors
/// As [`build_component`].
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

/// Runs Cargo; answers the file that it made.
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

/// Cargo's own lines, of all that it and rustc say.
fn build_step(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let steps = ["Compiling", "Downloading", "Downloaded", "Updating", "Locking", "Blocking", "Finished"];
    steps.iter().any(|step| line.starts_with(step)).then_some(line)
}

/// Writes a file such that its path never names half of one.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let half = path.with_extension(format!("half-{}", std::process::id()));
    std::fs::write(&half, bytes)
        .and_then(|()| std::fs::rename(&half, path))
        .map_err(|error| BuildError::io(path, error))
}
