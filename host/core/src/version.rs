//! The versions that a build supports: versions of the wire protocol, and levels of the cluster's state.
//!
//! Both are ranges. Two nodes communicate if their ranges of the wire protocol intersect. The level is agreed on, as
//! `level` of `state::ClusterState`: only commands and formats up to it may be used, so nothing enters the log, or
//! goes to a member, that a member cannot read. The claimant raises the level once every member speaks the next one;
//! it never falls.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A range of versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    /// The oldest version spoken.
    pub oldest: u32,
    /// The newest version spoken.
    pub newest: u32,
}

impl Range {
    /// Create the range from `oldest` to `newest`.
    pub const fn new(oldest: u32, newest: u32) -> Self {
        Self { oldest, newest }
    }

    /// Return true if the version is in the range.
    pub fn has(&self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// Return true if the two ranges have a version in common.
    pub fn meets(&self, other: Range) -> bool {
        self.oldest <= other.newest && other.oldest <= self.newest
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "{}", self.newest),
            false => write!(f, "{} to {}", self.oldest, self.newest),
        }
    }
}

/// The versions that one build speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Speaks {
    /// The versions of the wire protocol.
    pub protocol: Range,
    /// The levels of the cluster's state.
    pub levels: Range,
}

impl Speaks {
    /// The versions of the first build, and of any peer that states no levels.
    pub const FIRST: Self = Self { protocol: Range::new(1, 1), levels: Range::new(1, 1) };

    /// The versions of this build.
    pub const THIS: Self = Self { protocol: Range::new(1, 3), levels: Range::new(1, 8) };
}

impl Default for Speaks {
    fn default() -> Self {
        Self::FIRST
    }
}

/// The level at which this build founds a cluster.
pub const LEVEL: u32 = Speaks::THIS.levels.newest;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_meet_where_they_have_one_in_common() {
        let range = Range::new;
        assert!(range(1, 2).meets(range(2, 5)) && range(1, 9).meets(range(3, 3)));
        assert!(!range(1, 2).meets(range(3, 4)) && !range(3, 4).meets(range(1, 2)));
        assert!(range(1, 2).has(2) && !range(1, 2).has(3));
        assert_eq!((range(1, 1).to_string(), range(1, 2).to_string()), ("1".into(), "1 to 2".into()));
    }

    #[test]
    fn this_build_still_speaks_the_first() {
        assert!(Speaks::THIS.levels.has(1) && Speaks::THIS.protocol.has(1));
    }
}
