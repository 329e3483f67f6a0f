//! Names in a data directory that more than one part needs, and the version of its layout.

/// Version of everything in a new data directory.
pub const LAYOUT_VERSION: u64 = 1;

/// Version of a data directory with a database of items, which no build of version 1 would notice.
pub const ITEMS_LAYOUT: u64 = 2;

/// Version of a data directory with stores of modules with several replicas, whose records no build of version 2 can read.
pub const REPLICAS_LAYOUT: u64 = 3;

/// The layout version of a directory with hints: items that other nodes lack.
pub const HINTS_LAYOUT: u64 = 4;

/// The file that the process of the node keeps locked.
pub(super) const LOCK: &str = "LOCK";

/// The file that makes a directory a node's.
pub(super) const IDENTITY: &str = "IDENTITY";

/// The file of the join in progress.
pub(super) const JOIN: &str = "JOIN";

/// The file of the founding in progress.
pub(super) const FOUNDING: &str = "FOUNDING";
