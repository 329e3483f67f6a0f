//! Writes the sources of the SDK and of the bundled guests, which are embedded in this binary, as projects
//! that do not need this repository.

use std::fs;
use std::io;
use std::path::Path;

use include_dir::{Dir, DirEntry, include_dir};
use toml::{Table, Value};

static SDK: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../guest-sdk");
static WIT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../wit");
static GUESTS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../guests");
/// The manifest that the packages inherit from.
const WORKSPACE: &str = include_str!("../../../Cargo.toml");
/// The lock file, so that guests are built from the same dependencies, which a machine that built this binary
/// already has.
const LOCK: &str = include_str!("../../../Cargo.lock");

/// Path of the SDK below a project's root.
pub(super) const SDK_PATH: &str = "annulus-guest/sdk";

/// Write the SDK and the contract below a project's root, and the lock file into the root.
pub(super) fn write_sdk(root: &Path) -> io::Result<()> {
    write_package(&SDK, &root.join(SDK_PATH), "")?;
    write_package(
        SDK.get_dir("derive").ok_or(io::ErrorKind::NotFound)?,
        &root.join(SDK_PATH).join("derive"),
        "",
    )?;
    for file in WIT.files() {
        write(&root.join("annulus-guest/wit").join(file.path()), file.contents())?;
    }
    // Cargo drops entries that a project does not use, and adds the project itself.
    if !root.join("Cargo.lock").exists() {
        write(&root.join("Cargo.lock"), LOCK.as_bytes())?;
    }
    Ok(())
}

/// Write one bundled guest into a directory beside the SDK.
pub(super) fn write_guest(root: &Path, name: &str) -> io::Result<()> {
    let guest = GUESTS.get_dir(name).ok_or(io::ErrorKind::NotFound)?;
    write_package(guest, &root.join(name), &format!("../{SDK_PATH}"))
}

/// Return the workspace's profile for guests, as a part of a manifest.
pub(super) fn guest_profile() -> String {
    let profile = workspace().get("profile").and_then(|profiles| profiles.get("guest")).cloned();
    let profile = Table::from_iter([("guest".to_owned(), profile.unwrap_or(Value::Table(Table::new())))]);
    Table::from_iter([("profile".to_owned(), Value::Table(profile))]).to_string()
}

/// Write a package without its tests, with a self-contained manifest.
fn write_package(package: &Dir<'_>, to: &Path, sdk: &str) -> io::Result<()> {
    let manifest = package.get_file(package.path().join("Cargo.toml")).ok_or(io::ErrorKind::NotFound)?;
    let manifest = manifest.contents_utf8().ok_or(io::ErrorKind::InvalidData)?;
    write(&to.join("Cargo.toml"), standalone_manifest(manifest, sdk)?.as_bytes())?;
    if let Some(readme) = package.get_file(package.path().join("README.md")) {
        write(&to.join("README.md"), readme.contents())?;
    }
    let sources = package.get_dir(package.path().join("src")).ok_or(io::ErrorKind::NotFound)?;
    write_tree(sources, package.path(), to)
}

fn write_tree(dir: &Dir<'_>, base: &Path, to: &Path) -> io::Result<()> {
    for entry in dir.entries() {
        match entry {
            DirEntry::Dir(dir) => write_tree(dir, base, to)?,
            DirEntry::File(file) => {
                let within = file.path().strip_prefix(base).map_err(|_| io::ErrorKind::InvalidData)?;
                write(&to.join(within), file.contents())?;
            }
        }
    }
    Ok(())
}

/// Write a file unless it has these contents already: Cargo rebuilds files that are newer than its last
/// build.
pub(super) fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, contents)
}

/// Resolve the inheritance of a manifest: `x.workspace = true` becomes the workspace's value, the SDK is
/// found at `sdk`, lints and dev-dependencies are left out.
fn standalone_manifest(member: &str, sdk: &str) -> io::Result<String> {
    let mut manifest: Table = member.parse().map_err(io::Error::other)?;
    let workspace = workspace();
    manifest.remove("lints");
    manifest.remove("dev-dependencies");
    for (section, shared) in [("package", "package"), ("dependencies", "dependencies")] {
        let shared = workspace.get("workspace").and_then(|workspace| workspace.get(shared));
        let Some(entries) = manifest.get_mut(section).and_then(Value::as_table_mut) else { continue };
        for (name, entry) in entries.iter_mut() {
            if entry.get("workspace").is_some() {
                let inherited = shared.and_then(|shared| shared.get(name)).cloned();
                *entry =
                    inherited.ok_or_else(|| io::Error::other(format!("nothing to inherit for {name}")))?;
            }
            if name == "annulus-guest" {
                *entry = Value::Table(Table::from_iter([("path".to_owned(), Value::from(sdk))]));
            }
        }
    }
    Ok(manifest.to_string())
}

fn workspace() -> Table {
    WORKSPACE.parse().expect("this binary's own Cargo.toml, with which it was built")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn written_manifests_inherit_nothing() {
        let directory = tempfile::tempdir().unwrap();
        write_sdk(directory.path()).unwrap();
        write_guest(directory.path(), "kv").unwrap();
        for package in [SDK_PATH, "annulus-guest/sdk/derive", "kv"] {
            let manifest = fs::read_to_string(directory.path().join(package).join("Cargo.toml")).unwrap();
            assert!(!manifest.contains("workspace"), "{package}: {manifest}");
            assert!(directory.path().join(package).join("src/lib.rs").exists());
        }
        assert!(directory.path().join("annulus-guest/wit/vnode.wit").exists());
        assert!(guest_profile().contains("[profile.guest]\n"), "{}", guest_profile());
    }
}
