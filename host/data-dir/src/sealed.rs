//! Files with a checksum in their last line, which is a comment for people and parsers. Damage anywhere in
//! the file is detected.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::disk::Disk;
use super::error::{DataDirError, corrupt};
use super::files::{read as read_bytes, read_text, write_private};

const MARK: &str = "# sha256 ";
/// Length of the last line: the mark, 64 hexadecimal digits, the end of the line.
const LINE: usize = MARK.len() + 64 + 1;

fn checksum(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Append the checksum to contents.
fn seal(body: &[u8]) -> Vec<u8> {
    [body, format!("{MARK}{}\n", checksum(body)).as_bytes()].concat()
}

/// Verify the checksum, if the file has one. Return the contents and whether the file had a checksum.
fn open<'a>(path: &Path, sealed: &'a [u8]) -> Result<(&'a [u8], bool), DataDirError> {
    let at = sealed.len().checked_sub(LINE).filter(|at| sealed[*at..].starts_with(MARK.as_bytes()));
    let Some(at) = at else { return Ok((sealed, false)) };
    let (body, line) = sealed.split_at(at);
    if line[MARK.len()..LINE - 1] != *checksum(body).as_bytes() {
        return Err(corrupt(path, "its checksum does not match"));
    }
    Ok((body, true))
}

/// Write a value durably, as TOML.
pub(super) fn write<T: Serialize>(
    disk: &Disk,
    dir: &Path,
    name: &str,
    value: &T,
) -> Result<(), DataDirError> {
    let body = toml::to_string(value).map_err(|error| corrupt(&dir.join(name), error))?;
    write_sealed(disk, dir, name, body.as_bytes())
}

/// Write contents durably.
pub(super) fn write_sealed(disk: &Disk, dir: &Path, name: &str, body: &[u8]) -> Result<(), DataDirError> {
    write_private(disk, dir, name, &seal(body))
}

/// Read the text of a file and check its checksum; `None` if the file is missing.
pub(super) fn read_body(disk: &Disk, dir: &Path, name: &str) -> Result<Option<String>, DataDirError> {
    let path = dir.join(name);
    let Some(text) = read_text(disk, &path)? else { return Ok(None) };
    // The line ending of the last line may differ.
    let text = format!("{}\n", text.trim_end());
    match open(&path, text.as_bytes())? {
        (body, true) => Ok(Some(String::from_utf8_lossy(body).into_owned())),
        (_, false) => Err(corrupt(&path, "its checksum line is missing")),
    }
}

/// Read a value; `None` if the file is missing.
pub(super) fn read<T: DeserializeOwned>(
    disk: &Disk,
    dir: &Path,
    name: &str,
) -> Result<Option<T>, DataDirError> {
    let Some(body) = read_body(disk, dir, name)? else { return Ok(None) };
    toml::from_str(&body).map(Some).map_err(|error| corrupt(&dir.join(name), error))
}

/// Read contents that earlier builds wrote without a checksum; `None` if the file is missing.
pub(super) fn read_lenient(disk: &Disk, dir: &Path, name: &str) -> Result<Option<Vec<u8>>, DataDirError> {
    let path = dir.join(name);
    let Some(sealed) = read_bytes(disk, &path)? else { return Ok(None) };
    Ok(Some(open(&path, &sealed)?.0.to_vec()))
}
