//! The guests that tests deploy, built once per test run.

use std::path::{Path, PathBuf};

/// The component of a guest project of this repository, by its path from the root.
///
/// # Panics
/// If it does not build: no test can go on without it.
pub fn component(project: &str) -> Vec<u8> {
    let root = root();
    let name = Path::new(project).file_name().and_then(|name| name.to_str()).unwrap_or("guest");
    let path = root.join("target/guests/wasm32-wasip2/guest").join(format!("{}.wasm", name));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
