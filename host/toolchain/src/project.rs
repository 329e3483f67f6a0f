//! Reads a guest project's metadata from Cargo.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use super::BuildError;
use super::child::Child;
use super::way::{Way, clean};

/// Time limit of `cargo metadata`, which takes milliseconds.
const METADATA_LIMIT: Duration = Duration::from_secs(60);

/// The package that becomes a component.
#[derive(Debug)]
pub(super) struct Project {
    pub directory: PathBuf,
    pub manifest: PathBuf,
    pub package: String,
    target: PathBuf,
    workspace: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
}

/// The fields of interest of one of Cargo's JSON messages.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

impl Project {
    /// Find the project at a path, which is a directory or a `Cargo.toml`.
    pub fn at(path: &Path) -> Result<Self, BuildError> {
        let target = std::env::var_os("CARGO_TARGET_DIR").filter(|target| !target.is_empty());
        Self::building_into(path, target.map(PathBuf::from).as_deref())
    }

    /// Find the project, with `target` in place of `CARGO_TARGET_DIR`.
    fn building_into(path: &Path, target: Option<&Path>) -> Result<Self, BuildError> {
        let refuse = |reason: String| BuildError::NotAProject { path: path.to_owned(), reason };
        let manifest = if path.is_dir() { manifest_above(path) } else { path.to_owned() };
        if manifest.file_name().is_none_or(|name| name != "Cargo.toml") {
            return Err(refuse("neither a directory nor a Cargo.toml".to_owned()));
        }
        let manifest = manifest
            .canonicalize()
            .map_err(|_| refuse("no Cargo.toml exists in it or above it".to_owned()))?;
        let directory = manifest.parent().unwrap_or(Path::new("/")).to_owned();
        let metadata = metadata(&directory, &manifest, target).map_err(refuse)?;
        let Some(package) = metadata.packages.iter().find(|package| package.manifest_path == manifest) else {
            let names: Vec<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
            return Err(refuse(format!("a workspace; build one of its packages: {}", names.join(", "))));
        };
        Ok(Self {
            package: package.name.clone(),
            directory,
            manifest,
            target: metadata.target_directory,
            workspace: metadata.workspace_root,
        })
    }

    /// Return the target directory of a build method, apart from the project's native builds and from those
    /// of the other compiler.
    pub fn target_directory(&self, way: &Way) -> PathBuf {
        self.target.join(way.target_directory_name())
    }

    /// Return the arguments that select the workspace's `guest` profile, or that define a small release
    /// profile if there is none.
    pub fn profile_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--profile".to_owned(), "guest".to_owned()];
        let root = std::fs::read_to_string(self.workspace.join("Cargo.toml")).unwrap_or_default();
        let has_profile = root
            .parse::<toml::Table>()
            .is_ok_and(|root| root.get("profile").and_then(|profiles| profiles.get("guest")).is_some());
        if !has_profile {
            let settings = [
                "inherits='release'",
                "opt-level=3",
                "lto=true",
                "codegen-units=1",
                "debug=false",
                "strip=true",
            ];
            for setting in settings {
                arguments.extend(["--config".to_owned(), format!("profile.guest.{setting}")]);
            }
        }
        arguments
    }

    /// Find the wasm file in Cargo's messages.
    pub fn artifact(&self, messages: &str) -> Result<PathBuf, BuildError> {
        messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Message>(line).ok())
            .filter(|message| message.reason == "compiler-artifact" && message.manifest_path == self.manifest)
            .flat_map(|message| message.filenames)
            .find(|file| file.extension().is_some_and(|extension| extension == "wasm"))
            .ok_or_else(|| {
                let lib = "[lib]\ncrate-type = [\"cdylib\", \"rlib\"]";
                BuildError::NoComponent(format!("{} must have\n{lib}", self.manifest.display()))
            })
    }
}

/// Find the nearest manifest, as Cargo does.
fn manifest_above(directory: &Path) -> PathBuf {
    let here = directory.join("Cargo.toml");
    let whole = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let above =
        whole.ancestors().map(|ancestor| ancestor.join("Cargo.toml")).find(|manifest| manifest.is_file());
    above.unwrap_or(here)
}

fn metadata(directory: &Path, manifest: &Path, target: Option<&Path>) -> Result<Metadata, String> {
    // Relative paths are relative to the user's working directory, not to the project.
    let target = target.map(std::path::absolute).transpose().map_err(|error| error.to_string())?;
    let mut command = Command::new("cargo");
    clean(&mut command).current_dir(directory);
    if let Some(target) = &target {
        command.env("CARGO_TARGET_DIR", target);
    }
    command.args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"]).arg(manifest);
    let ended = match Child::run("cargo metadata", command, METADATA_LIMIT, &|_| {}) {
        // A build may be possible without Cargo, because the third method installs one. The project is then
        // read from its files.
        Err(BuildError::Spawn { .. }) => return without_cargo(directory, manifest, target),
        other => other.map_err(|error| error.to_string())?,
    };
    if !ended.success {
        return Err(ended.stderr.trim().to_owned());
    }
    serde_json::from_str(&ended.stdout).map_err(|error| format!("cargo metadata: {error}"))
}

fn without_cargo(directory: &Path, manifest: &Path, target: Option<PathBuf>) -> Result<Metadata, String> {
    let text = std::fs::read_to_string(manifest).map_err(|error| error.to_string())?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let name = table.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str);
    let name = name.ok_or("its Cargo.toml names no package")?.to_owned();
    let root = directory
        .ancestors()
        .find(|ancestor| {
            let manifest = std::fs::read_to_string(ancestor.join("Cargo.toml")).unwrap_or_default();
            manifest.parse::<toml::Table>().is_ok_and(|table| table.contains_key("workspace"))
        })
        .unwrap_or(directory);
    Ok(Metadata {
        packages: vec![Package { name, manifest_path: manifest.to_owned() }],
        target_directory: target.unwrap_or_else(|| root.join("target")),
        workspace_root: root.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn no_output_of_cargo_makes_a_reader_panic() {
        let message = r#"{"reason":"compiler-artifact","manifest_path":"/p","filenames":["/p/a.wasm"]}"#;
        let metadata = r#"{"packages":[{"name":"a","manifest_path":"/p"}],"target_directory":"/t","workspace_root":"/w"}"#;
        for text in [message, metadata] {
            for at in 0..text.len() {
                for byte in [b'"', b'{', b'}', b'[', 0, 0x80, b'9'] {
                    let mut bytes = text.as_bytes().to_vec();
                    bytes[at] = byte;
                    let damaged = String::from_utf8_lossy(&bytes).into_owned();
                    for text in [&damaged, &damaged[..damaged.floor_char_boundary(at)]] {
                        drop((serde_json::from_str::<Message>(text), serde_json::from_str::<Metadata>(text)));
                    }
                }
            }
        }
    }

    fn refusal(path: &Path) -> String {
        match Project::at(path) {
            Err(BuildError::NotAProject { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_path_without_a_project_is_rejected_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        assert!(refusal(directory.path()).contains("no Cargo.toml"));
        assert!(refusal(&directory.path().join("absent")).contains("neither"));
        let manifest = directory.path().join("Cargo.toml");
        std::fs::write(&manifest, "[package\n").unwrap();
        assert!(!refusal(directory.path()).is_empty());
        std::fs::write(&manifest, "[workspace]\nmembers = []\n").unwrap();
        assert!(refusal(&manifest).contains("workspace"));
    }

    #[test]
    fn a_package_without_the_guest_profile_is_given_one() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("src")).unwrap();
        std::fs::write(directory.path().join("src/lib.rs"), "").unwrap();
        let manifest = directory.path().join("Cargo.toml");
        std::fs::write(&manifest, "[package]\nname = \"one\"\nedition = \"2024\"\n[workspace]\n").unwrap();
        let project = Project::at(directory.path()).unwrap();
        assert_eq!(project.package, "one");
        assert!(project.profile_arguments().contains(&"profile.guest.inherits='release'".to_owned()));
        // The behaviour is Cargo's: the build runs from any directory of the project, into the directory that
        // the variable names.
        assert_eq!(Project::at(&directory.path().join("src")).unwrap().manifest, project.manifest);
        let elsewhere =
            Project::building_into(directory.path(), Some(Path::new("/elsewhere/of cargo"))).unwrap();
        assert_eq!(elsewhere.target_directory(&Way::Installed), Path::new("/elsewhere/of cargo/guests"));
        let with_profile =
            "[package]\nname = \"one\"\n[workspace]\n[profile.guest]\ninherits = \"release\"\n";
        std::fs::write(&manifest, with_profile).unwrap();
        assert_eq!(Project::at(&manifest).unwrap().profile_arguments(), ["--profile", "guest"]);
    }
}
