//! The guests that this binary brings along.

use std::io;
use std::path::{Path, PathBuf};

use super::standalone::{guest_profile, write, write_guest, write_sdk};

/// The projects of the bundled guests, ready for [`build_component`](super::build_component).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundledGuests {
    /// Answers which partition was asked.
    pub ping: PathBuf,
    /// The key/value store. With the feature `v2` it is its next version, for a swap.
    pub kv: PathBuf,
}

/// Writes the bundled guests into a directory, as projects that need nothing else but the crate registry.
/// What is there already and the same is left as it is.
///
/// # Errors
/// When the directory cannot be written; some files may be there then.
pub fn bundled_guests(directory: &Path) -> io::Result<BundledGuests> {
    write_sdk(directory)?;
    let workspace =
        format!("[workspace]\nresolver = \"3\"\nmembers = [\"ping\", \"kv\"]\n\n{}", guest_profile());
    write(&directory.join("Cargo.toml"), workspace.as_bytes())?;
    for guest in ["ping", "kv"] {
        write_guest(directory, guest)?;
    }
    Ok(BundledGuests { ping: directory.join("ping"), kv: directory.join("kv") })
}
