//! How a build fails.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::way::{TOOLCHAIN_VARIABLE, Way};

/// How a build fails. A component that an earlier build made is still there.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No Cargo project, or none that can be read. Nothing was run.
    #[error("{}: not a guest project: {reason}", path.display())]
    NotAProject {
        /// What was to be built.
        path: PathBuf,
        /// What it lacks.
        reason: String,
    },
    /// `ANNULUS_GUEST_TOOLCHAIN` names no way. Nothing was run.
    #[error("{TOOLCHAIN_VARIABLE}={0}: one of installed, rustup, debian")]
    UnknownWay(String),
    /// No way to a component on this machine.
    #[error("this machine cannot build WebAssembly components yet:{}\ninstall one of them, then try again", Tried(.0))]
    NoToolchain(Vec<(Way, String)>),
    /// The guest's code does not compile.
    #[error("the guest does not compile:\n{output}")]
    Compile {
        /// What Cargo and rustc said.
        output: String,
    },
    /// It compiles, but into no vnode.
    #[error("the build made no component: {0}")]
    NoComponent(String),
    /// A tool could not be run.
    #[error("cannot run {tool}: {error}")]
    Spawn {
        /// Its name.
        tool: String,
        /// Why.
        error: io::Error,
    },
    /// A tool took longer than any build should; it was stopped.
    #[error("{tool} took longer than {} s and was stopped; its last words:\n{output}", limit.as_secs())]
    Deadline {
        /// Its name.
        tool: String,
        /// How long it had.
        limit: Duration,
        /// What it said.
        output: String,
    },
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl BuildError {
    /// An error of reading or writing `path`.
    pub fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }
}

/// The ways that were tried, one a line.
struct Tried<'a>(&'a [(Way, String)]);

impl std::fmt::Display for Tried<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (way, reason) in self.0 {
            write!(out, "\n  {}: {}", way.description(), reason.trim())?;
        }
        Ok(())
    }
}
