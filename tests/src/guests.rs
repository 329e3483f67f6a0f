//! The guests that tests deploy, built by the toolchain that users have, once per test run.

use std::collections::HashMap;
use std::fs::{File, read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use annulus::toolchain::build_component_with;
use parking_lot::Mutex;

/// What was built in this process, by project and features.
type Built = Mutex<HashMap<(String, Vec<String>), Vec<u8>>>;

/// The component of a guest project of this repository, by its path from the root.
///
/// # Panics
/// If it does not build: no test can go on without it.
pub fn component(project: &str) -> Vec<u8> {
    component_with(project, &[])
}

/// The same with Cargo features of the project.
///
/// # Panics
/// If it does not build.
pub fn component_with(project: &str, features: &[&str]) -> Vec<u8> {
    static BUILT: OnceLock<Built> = OnceLock::new();
    let mut built = BUILT.get_or_init(Built::default).lock();
    let wanted = (project.to_owned(), features.iter().map(|&feature| feature.to_owned()).collect());
    built.entry(wanted).or_insert_with(|| build(project, features)).clone()
}

fn build(project: &str, features: &[&str]) -> Vec<u8> {
    // Test programs run side by side: one builds, the others find it built.
    let _turn = turn();
    let built = build_component_with(&root().join(project), features, &|_| ());
    let built = built.unwrap_or_else(|error| panic!("{project} does not build: {error}"));
    read(&built.component).unwrap_or_else(|error| panic!("{}: {error}", built.component.display()))
}

/// A lock among all processes that build guests; it ends with the file.
fn turn() -> File {
    let path = std::env::temp_dir().join("annulus-test-guests.lock");
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
