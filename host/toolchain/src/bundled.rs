//! The guests bundled with this binary.

use std::io;
use std::path::{Path, PathBuf};

use super::standalone::{guest_profile, write, write_guest, write_sdk};

/// The projects of the bundled guests, ready for [`build_component`](super::build_component).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundledGuests {
    /// The smallest vnode, which returns the partition that was asked.
    pub ping: PathBuf,
    /// The key/value store, with its items in host storage. With the feature `v2` it is the next version, for a hot swap.
    pub kv: PathBuf,
}

/// Write the bundled guests into a directory, as projects that need nothing but the crate registry. Files
/// that exist with the same contents are left unchanged.
///
/// # Errors
/// The directory cannot be written; some of the files may exist already.
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
