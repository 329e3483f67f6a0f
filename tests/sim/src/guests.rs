//! The guests that tests deploy, built once for all tests by the same toolchain that users have.
//!
//! Components are cached in `target/guest-cache` under the digest of their sources, so that other test programs
//! and later runs do not build them again.

use std::collections::HashMap;
use std::fs::{self, File, read};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use annulus_toolchain::{TOOLCHAIN_VARIABLE, build_component_with};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

/// Components that this process has built or read, by project and features. Each has its own lock: a test does not wait
/// for the build of a component that another test needs.
type Built = Mutex<HashMap<(String, Vec<String>), Arc<OnceLock<Vec<u8>>>>>;

/// Return the component of a guest project, given by its path from the repository's root.
///
/// # Panics
/// Panics if the project does not build: no test can continue without it.
pub fn component(project: &str) -> Vec<u8> {
    component_with(project, &[])
}

/// Return the component of a guest project, built with these Cargo features.
///
/// # Panics
/// Panics if the project does not build.
pub fn component_with(project: &str, features: &[&str]) -> Vec<u8> {
    static BUILT: OnceLock<Built> = OnceLock::new();
    let wanted = (project.to_owned(), features.iter().map(|&feature| feature.to_owned()).collect());
    let component = BUILT.get_or_init(Built::default).lock().entry(wanted).or_default().clone();
    component.get_or_init(|| build(project, features)).clone()
}

fn build(project: &str, features: &[&str]) -> Vec<u8> {
    // Test programs run in parallel: one builds the component, and the others find it in the cache.
    let _turn = turn();
    let cache = root().join("target/guest-cache");
    let name = [&[project.replace('/', "-").as_str()], features].concat().join("+");
    let path = cache.join(format!("{name}.{}.component.wasm", source_digest(project, features)));
    if let Ok(bytes) = read(&path) {
        return bytes;
    }
    let built = build_component_with(&root().join(project), features, &|_| ());
    let built = built.unwrap_or_else(|error| panic!("{project} does not build: {error}"));
    let bytes =
        read(&built.component).unwrap_or_else(|error| panic!("{}: {error}", built.component.display()));
    keep(&cache, &format!("{name}."), &path, &bytes)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes
}

/// Write a component atomically, and delete those of older sources.
fn keep(cache: &Path, prefix: &str, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_file(entry.path())?;
        }
    }
    let part = path.with_extension("part");
    fs::write(&part, bytes)?;
    fs::rename(part, path)
}

/// Return the SHA-256, in hex, of everything that a component is built from: its sources, those of the SDK and of
/// the contract, the workspace's manifest and lock file, its features, and the compiler that is selected.
fn source_digest(project: &str, features: &[&str]) -> String {
    let mut files = Vec::new();
    for place in [project, "guest-sdk", "wit", "Cargo.toml", "Cargo.lock"] {
        files_below(&root().join(place), &mut files);
    }
    files.sort();
    let mut sum = Sha256::new();
    let mut add = |bytes: &[u8]| {
        sum.update((bytes.len() as u64).to_be_bytes());
        sum.update(bytes);
    };
    features.iter().for_each(|feature| add(feature.as_bytes()));
    add(std::env::var_os(TOOLCHAIN_VARIABLE).unwrap_or_default().as_encoded_bytes());
    add(&rustc_version());
    for file in files {
        add(file.as_os_str().as_encoded_bytes());
        add(&read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())));
    }
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Return the compiler's version text, or nothing without a compiler; the build reports that itself.
fn rustc_version() -> Vec<u8> {
    let said = Command::new("rustc").arg("-vV").current_dir(root()).output();
    said.map(|said| said.stdout).unwrap_or_default()
}

/// Add every file at or below `place`, except those in `target` directories.
fn files_below(place: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(place) else {
        files.push(place.to_owned());
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.file_name() != "target") {
        files_below(&entry.path(), files);
    }
}

/// Lock out other processes that build guests. Dropping the file releases the lock.
fn turn() -> File {
    let path = std::env::temp_dir().join("annulus-test-guests.lock");
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file
}

/// Return the path of the repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_digest_depends_on_sources_and_features() {
        let plain = source_digest("guests/kv", &[]);
        assert_eq!(plain, source_digest("guests/kv", &[]));
        assert_ne!(plain, source_digest("guests/kv", &["v2"]));
        assert_ne!(plain, source_digest("guests/ping", &[]));
    }

    #[test]
    fn a_cached_component_replaces_only_those_of_older_sources() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["kv.1.component.wasm", "kv+v2.1.component.wasm", "kv.2.component.wasm"];
        let files = files.map(|name| dir.path().join(name));
        keep(dir.path(), "kv.", &files[0], b"old").unwrap();
        keep(dir.path(), "kv+v2.", &files[1], b"other").unwrap();
        keep(dir.path(), "kv.", &files[2], b"new").unwrap();
        assert!(!files[0].exists());
        assert_eq!(read(&files[1]).unwrap(), b"other");
        assert_eq!(read(&files[2]).unwrap(), b"new");
    }
}
