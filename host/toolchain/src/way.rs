//! The methods to build WebAssembly components from Rust, and the choice of one that works on this machine.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::BuildError;
use super::child::{Child, last_lines};

/// The environment variable that restricts builds to one method: `installed`, `rustup` or `debian`.
pub const TOOLCHAIN_VARIABLE: &str = "ANNULUS_GUEST_TOOLCHAIN";

const COMPONENT_TARGET: &str = "wasm32-wasip2";
const CORE_TARGET: &str = "wasm32-unknown-unknown";

/// Time limit of queries about the installation; rustc answers them at once.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// Time limit of rustup: the target is a download of about 30 MB, and a network that drops every packet must
/// not delay the build for longer.
const RUSTUP_LIMIT: Duration = Duration::from_secs(180);
/// Time limit of apt-get: Debian's packages are a download of about 150 MB.
const APT_LIMIT: Duration = Duration::from_secs(600);

const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Packages with LLVM's linker, for machines without a rustup toolchain that has one. The linker must read
/// the compiler's output, so the one of the compiler's own LLVM version comes first.
const DEBIAN_LINKERS: [&str; 3] = ["lld-22", "lld-19", "lld"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_STD_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/std/src/lib.rs";

/// A method to build a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The target is installed already.
    Installed,
    /// rustup installs the target.
    Rustup,
    /// Debian's compiler, with the standard library built from source.
    Debian {
        /// Path of LLVM's linker for wasm.
        linker: PathBuf,
    },
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed | Self::Rustup => write!(out, "for {COMPONENT_TARGET}"),
            Self::Debian { .. } => write!(out, "for {CORE_TARGET}, with the standard library from source"),
        }
    }
}

impl Way {
    /// Choose the first method that works on this machine in this directory, whose toolchain file is
    /// respected.
    pub(super) fn choose(
        directory: &Path,
        progress: &dyn Fn(&str),
        may_install: &dyn Fn(&str) -> bool,
    ) -> Result<Self, BuildError> {
        let only = std::env::var(TOOLCHAIN_VARIABLE).ok().filter(|name| !name.is_empty());
        if let Some(name) = only.as_deref()
            && !["installed", "rustup", "debian"].contains(&name)
        {
            return Err(BuildError::UnknownWay(name.to_owned()));
        }
        let allowed = |name: &str| only.as_deref().is_none_or(|only| only == name);
        let mut tried = Vec::new();
        if allowed("installed") {
            match installed(directory) {
                Ok(()) => return Ok(Self::Installed),
                Err(reason) => tried.push((Self::Installed, reason)),
            }
        }
        if allowed("rustup") {
            match rustup(directory, progress) {
                Ok(()) => return Ok(Self::Rustup),
                Err(reason) => tried.push((Self::Rustup, reason)),
            }
        }
        if allowed("debian") {
            // Selecting this method explicitly is consent.
            let may_install = |packages: &str| only.is_some() || may_install(packages);
            match debian(progress, &may_install) {
                Ok(linker) => return Ok(Self::Debian { linker }),
                Err(reason) => tried.push((Self::Debian { linker: PathBuf::new() }, reason)),
            }
        }
        Err(BuildError::NoToolchain(tried))
    }

    /// Return the command or the name with which a person would install the method.
    pub(super) fn description(&self) -> &'static str {
        match self {
            Self::Installed => "Rust's target wasm32-wasip2",
            Self::Rustup => "rustup target add wasm32-wasip2",
            Self::Debian { .. } => "apt-get install rustc-web cargo-web rust-web-src",
        }
    }

    /// Return the name of the target directory: compilers of two releases cannot share one.
    pub(super) fn target_directory_name(&self) -> &'static str {
        match self {
            Self::Installed | Self::Rustup => "guests",
            Self::Debian { .. } => "guests-debian",
        }
    }

    /// Return a Cargo command to run in a project's directory.
    pub(super) fn cargo(&self, directory: &Path) -> Command {
        let mut command = match self {
            Self::Installed | Self::Rustup => Command::new("cargo"),
            Self::Debian { .. } => Command::new(DEBIAN_CARGO),
        };
        clean(&mut command).current_dir(directory);
        if let Self::Debian { linker } = self {
            // Building the standard library requires a nightly compiler, unless this variable is set.
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
            command.env_remove("RUSTUP_TOOLCHAIN");
        }
        command
    }

    pub(super) fn build_arguments(&self) -> &'static [&'static str] {
        match self {
            Self::Installed | Self::Rustup => &["--target", COMPONENT_TARGET],
            Self::Debian { .. } => &["--target", CORE_TARGET, "-Zbuild-std=std,panic_abort"],
        }
    }
}

/// Remove environment variables for native code, set by an outer Cargo or by the user.
pub(super) fn clean(command: &mut Command) -> &mut Command {
    let native = [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
    ];
    native.into_iter().fold(command, |command, name| command.env_remove(name))
}

/// Check for the target with rustc instead of rustup, because a toolchain may have it without rustup.
fn installed(directory: &Path) -> Result<(), String> {
    let mut rustc = Command::new("rustc");
    clean(&mut rustc).current_dir(directory);
    rustc.args(["--print", "target-libdir", "--target", COMPONENT_TARGET]);
    let library = Child::answer("rustc", rustc, ASK_LIMIT).ok_or("no installed rustc supports it")?;
    let std = std::fs::read_dir(&library).map_err(|_| "it is not installed".to_owned())?;
    let has_std = std.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"));
    if has_std { Ok(()) } else { Err(format!("{library} has no standard library")) }
}

fn rustup(directory: &Path, progress: &dyn Fn(&str)) -> Result<(), String> {
    progress("rustup target add wasm32-wasip2");
    let mut rustup = Command::new("rustup");
    clean(&mut rustup).current_dir(directory).args(["target", "add", COMPONENT_TARGET]);
    let ended = Child::run("rustup", rustup, RUSTUP_LIMIT, &|_| {}).map_err(|error| error.to_string())?;
    if !ended.success {
        return Err(last_lines(&ended.stderr, 5));
    }
    installed(directory)
}

/// Install the missing Debian packages and return the path of the linker.
fn debian(progress: &dyn Fn(&str), may_install: &dyn Fn(&str) -> bool) -> Result<PathBuf, String> {
    let complete =
        || [DEBIAN_RUSTC, DEBIAN_CARGO, DEBIAN_STD_SOURCE].iter().all(|file| Path::new(file).exists());
    if !complete() {
        apt_get(&DEBIAN_PACKAGES, progress, may_install)?;
        if !complete() {
            return Err("the packages are installed, but not in the expected places".to_owned());
        }
    }
    if let Some(linker) = find_linker() {
        return Ok(linker);
    }
    let mut failure = String::new();
    for package in DEBIAN_LINKERS {
        match apt_get(&[package], progress, may_install) {
            Ok(()) => break,
            Err(reason) => failure = reason,
        }
    }
    find_linker().ok_or_else(|| format!("no linker for wasm, neither rust-lld nor wasm-ld: {failure}"))
}

fn apt_get(
    packages: &[&str],
    progress: &dyn Fn(&str),
    may_install: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err("this is not Debian".to_owned());
    }
    if !is_root() {
        return Err(format!("only root can install {}", packages.join(" ")));
    }
    if !may_install(&packages.join(" ")) {
        return Err(format!("installing {} was not confirmed: allow it with --yes", packages.join(" ")));
    }
    progress(&format!("apt-get install {}", packages.join(" ")));
    let install = || {
        let mut install = Command::new("apt-get");
        // The packages would replace an installed Rust from Debian, and nothing may be removed without
        // consent.
        install.args(["install", "-y", "-q", "--no-install-recommends", "--no-remove"]).args(packages);
        install.env("DEBIAN_FRONTEND", "noninteractive");
        Child::run("apt-get install", install, APT_LIMIT, &|_| {}).map_err(|error| error.to_string())
    };
    if install()?.success {
        return Ok(());
    }
    // The package lists of a fresh machine are empty, or list packages that no longer exist.
    let mut update = Command::new("apt-get");
    update.args(["update", "-q"]);
    Child::run("apt-get update", update, APT_LIMIT, &|_| {}).map_err(|error| error.to_string())?;
    let ended = install()?;
    if ended.success { Ok(()) } else { Err(last_lines(&ended.stderr, 5)) }
}

fn is_root() -> bool {
    let mut id = Command::new("id");
    id.arg("-u");
    Child::answer("id", id, ASK_LIMIT).is_some_and(|id| id == "0")
}

/// Find the linker of a rustup toolchain (its LLVM is about as new as that of Debian's compiler), else the
/// newest one of LLVM.
fn find_linker() -> Option<PathBuf> {
    let mut rustc = Command::new("rustc");
    clean(&mut rustc).args(["--print", "sysroot"]);
    let sysroot = Child::answer("rustc", rustc, ASK_LIMIT);
    let bundled = sysroot.into_iter().flat_map(|sysroot| {
        let hosts = std::fs::read_dir(Path::new(&sysroot).join("lib/rustlib")).ok();
        hosts.into_iter().flatten().flatten().map(|host| host.path().join("bin/rust-lld"))
    });
    let versioned = (19..30).rev().map(|version| PathBuf::from(format!("/usr/bin/wasm-ld-{version}")));
    bundled.chain(versioned).chain([PathBuf::from("/usr/bin/wasm-ld")]).find(|linker| linker.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_not_installed_without_consent() {
        let begun = std::cell::Cell::new(false);
        let refused = apt_get(&["rustc-web"], &|_| begun.set(true), &|_| false);
        assert!(refused.is_err() && !begun.get(), "{refused:?}");
    }
}
