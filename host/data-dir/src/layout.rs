//! Names in a data directory that more than one part needs, and the version of its layout.

/// Version of everything in a data directory.
pub const LAYOUT_VERSION: u64 = 1;

/// Held by the process that runs here.
pub(super) const LOCK: &str = "LOCK";

/// The file that makes a directory a node's.
pub(super) const IDENTITY: &str = "IDENTITY";

/// The join that is under way.
pub(super) const JOIN: &str = "JOIN";

/// The founding that is under way.
pub(super) const FOUNDING: &str = "FOUNDING";
