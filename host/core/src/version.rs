//! What a build speaks: versions of the wire, and levels of the cluster's state.
//!
//! Both are ranges. Two nodes talk if their protocols meet. The state's level is agreed on: it is the
//! `level` of `state::ClusterState` and says which commands and formats may
//! be used at all, so that nothing enters the log, or goes to a member, that one of them cannot
//! read. When every member is known to speak the next one, the claimant raises it; it never sinks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// From the oldest to the newest, both spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Range {
    /// A range.
    pub const fn new(oldest: u32, newest: u32) -> Self {
        Self { oldest, newest }
    }

    /// Is this one spoken?
    pub fn has(&self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// Is there one that both speak?
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

/// What one build speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Speaks {
    /// Versions of what goes over a connection.
    pub protocol: Range,
    /// Levels of the cluster's state.
    pub levels: Range,
}

impl Speaks {
    /// The first build, and whoever says nothing of levels.
    pub const FIRST: Self = Self { protocol: Range::new(1, 1), levels: Range::new(1, 1) };

    /// This build.
    pub const THIS: Self = Self { protocol: Range::new(1, 2), levels: Range::new(1, 4) };
}

impl Default for Speaks {
    fn default() -> Self {
        Self::FIRST
    }
}

/// The level that this build founds a cluster with.
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
