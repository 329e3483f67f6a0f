//! `annulus new`: creates a guest project that builds, deploys and runs without changes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::standalone::{SDK_PATH, guest_profile, write, write_sdk};

const MANIFEST: &str = include_str!("template/Cargo.toml.txt");
const SOURCE: &str = include_str!("template/lib.rs.txt");
const README: &str = include_str!("template/README.md.txt");

/// The maximum length of a module name in bytes: names are typed often, and are part of file names and URLs.
const NAME_MAX: usize = 64;

/// Names that Cargo or the compiler refuses for a library, and the names of the SDK.
const TAKEN: [&str; 58] = [
    "abstract",
    "alloc",
    "annulus-guest",
    "annulus-guest-derive",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// The reason why a project was not created. No part of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ScaffoldError {
    /// The name is not valid as the name of a package, a crate and a module.
    #[error("`{name}` cannot be a module's name: {reason}")]
    Name {
        /// The name that was given.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The directory exists already, and is left unchanged.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The project cannot be written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The project's directory.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
}

/// Check that a module can have this name.
///
/// # Errors
/// [`ScaffoldError::Name`] with the rule that the name breaks.
pub fn check_name(name: &str) -> Result<(), ScaffoldError> {
    let refuse = |reason| Err(ScaffoldError::Name { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > NAME_MAX {
        return refuse("it must have 1 to 64 characters");
    }
    if !name.starts_with(|letter: char| letter.is_ascii_lowercase()) {
        return refuse("it must start with a lower-case letter");
    }
    if !name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-') {
        return refuse("it may contain only lower-case letters, digits and dashes");
    }
    if name.ends_with('-') || name.contains("--") {
        return refuse("a dash is allowed only between two words");
    }
    if TAKEN.contains(&name) {
        return refuse("it is reserved in Rust or Annulus");
    }
    Ok(())
}

/// Write a new guest project into a directory, which must not exist yet.
///
/// # Errors
/// See [`ScaffoldError`]. No part of the project is left.
pub fn scaffold(name: &str, directory: &Path) -> Result<(), ScaffoldError> {
    check_name(name)?;
    let failed = |error| ScaffoldError::Io { path: directory.to_owned(), error };
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    // Creating the directory is the check, so that two processes cannot both pass it.
    fs::create_dir(directory).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => ScaffoldError::Exists(directory.to_owned()),
        _ => failed(error),
    })?;
    write_project(name, directory).map_err(|error| {
        // The directory was created here, so removing its contents loses nothing. Files that cannot be
        // removed stay.
        let _ = fs::remove_dir_all(directory);
        failed(error)
    })
}

fn write_project(name: &str, directory: &Path) -> io::Result<()> {
    let fill = |template: &str| template.replace("{{name}}", name).replace("{{sdk}}", SDK_PATH);
    write_sdk(directory)?;
    write(&directory.join("Cargo.toml"), (fill(MANIFEST) + &guest_profile()).as_bytes())?;
    write(&directory.join("src/lib.rs"), SOURCE.as_bytes())?;
    write(&directory.join("README.md"), fill(README).as_bytes())?;
    write(&directory.join(".gitignore"), b"target\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_that_cannot_be_a_crate_or_a_module_are_rejected() {
        for name in ["a", "cart", "rate-limit", "kv2"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let long = "x".repeat(65);
        for name in [
            "",
            "2kv",
            "Kv",
            "a b",
            "../x",
            "a/b",
            "a_b",
            "-a",
            "a-",
            "a--b",
            "ü",
            "struct",
            "std",
            "annulus-guest",
            &long,
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn an_existing_directory_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("precious"), "data").unwrap();
        assert!(matches!(scaffold("cart", directory.path()), Err(ScaffoldError::Exists(_))));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_project_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let project = directory.path().join("deep/rate-limit");
        scaffold("rate-limit", &project).unwrap();
        let manifest: toml::Table = fs::read_to_string(project.join("Cargo.toml")).unwrap().parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some("rate-limit"));
        let sdk = manifest["dependencies"]["annulus-guest"]["path"].as_str().unwrap();
        assert!(project.join(sdk).join("src/lib.rs").exists());
        assert!(manifest["profile"].get("guest").is_some());
        assert!(manifest.contains_key("workspace"));
        assert!(!fs::read_to_string(project.join("README.md")).unwrap().contains("{{"));
    }
}
