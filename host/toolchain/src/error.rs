//! The errors of a build.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::way::{TOOLCHAIN_VARIABLE, Way};

/// The reason why a build failed. A component from an earlier build is left in place.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The path is not a Cargo project, or its project cannot be read. Nothing was built.
    #[error("{}: not a guest project: {reason}", path.display())]
    NotAProject {
        /// The path that was to be built.
        path: PathBuf,
        /// The reason in words.
        reason: String,
    },
    /// `ANNULUS_GUEST_TOOLCHAIN` is not the name of a build method. Nothing was built.
    #[error("{TOOLCHAIN_VARIABLE}={0} is not one of installed, rustup, debian")]
    UnknownWay(String),
    /// No build method works on this machine; holds each method that was tried, with the reason.
    #[error("this machine cannot build WebAssembly components yet:{}\ninstall one of these, then try again", Tried(.0))]
    NoToolchain(Vec<(Way, String)>),
    /// The guest's code does not compile.
    #[error("the guest does not compile:\n{output}")]
    Compile {
        /// The stderr of Cargo and rustc.
        output: String,
    },
    /// The code compiles, but the result is not a vnode.
    #[error("the build made no component: {0}")]
    NoComponent(String),
    /// A tool could not be run.
    #[error("cannot run {tool}: {error}")]
    Spawn {
        /// Name of the tool.
        tool: String,
        /// Error of the system.
        error: io::Error,
    },
    /// A tool exceeded its time limit and was killed.
    #[error("{tool} took longer than {} s and was stopped; its last output:\n{output}", limit.as_secs())]
    Deadline {
        /// Name of the tool.
        tool: String,
        /// The limit.
        limit: Duration,
        /// The last lines of its stderr.
        output: String,
    },
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
}

impl BuildError {
    /// Create the error for a failed read or write of `path`.
    pub fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }
}

/// Formats the methods that were tried, one a line.
struct Tried<'a>(&'a [(Way, String)]);

impl std::fmt::Display for Tried<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (way, reason) in self.0 {
            write!(out, "\n  {}: {}", way.description(), reason.trim())?;
        }
        Ok(())
    }
}
