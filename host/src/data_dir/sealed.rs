//! Structs as TOML under a checksum: readable by people, and damage is noticed.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::DataDirError;
use super::files::{corrupt, read_text, write_private};

const MARK: &str = "# sha256 ";

fn checksum(body: &str) -> String {
    Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a value durably.
pub(super) fn write<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<(), DataDirError> {
    let body = toml::to_string(value).map_err(|error| corrupt(&dir.join(name), error))?;
    write_private(dir, name, format!("{body}{MARK}{}\n", checksum(&body)).as_bytes())
}

/// Reads the text of a file whose checksum holds; `None` if there is no such file.
pub(super) fn read_body(dir: &Path, name: &str) -> Result<Option<String>, DataDirError> {
    let path = dir.join(name);
    let Some(text) = read_text(&path)? else { return Ok(None) };
    let Some((body, sum)) = text.rsplit_once(MARK) else {
        return Err(corrupt(&path, "its checksum line is missing"));
    };
    if sum.trim_end() != checksum(body) {
        return Err(corrupt(&path, "its checksum does not match"));
    }
    Ok(Some(body.to_owned()))
}

/// Reads a value; `None` if there is no such file.
pub(super) fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>, DataDirError> {
    let Some(body) = read_body(dir, name)? else { return Ok(None) };
    toml::from_str(&body).map(Some).map_err(|error| corrupt(&dir.join(name), error))
}
