//! The lanes of a connection and their order.
//!
//! The data class has two lanes: one for frames below [`LARGE_FRAME`], so that as many as possible share a
//! packet, and one for larger frames, so that no small frame waits behind a large one. The control class has
//! a separate lane.

use super::limits::LARGE_FRAME;

/// The class of traffic that a request belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Commands between nodes.
    Data,
    /// Raft and proposals. Takes priority over data.
    Control,
}

/// Number of lanes per connection.
pub(super) const LANES: usize = 3;
const SMALL: usize = 0;
const LARGE: usize = 1;
const CONTROL: usize = 2;

impl Lane {
    /// Return the class of the lane at an index.
    pub(super) fn at(index: usize) -> Self {
        debug_assert!(index < LANES, "lane {index} does not exist");
        if index == CONTROL { Self::Control } else { Self::Data }
    }

    /// Return the index of the lane for a frame with a payload of this size.
    pub(super) fn index(self, payload_bytes: usize) -> usize {
        match self {
            Self::Data if payload_bytes < LARGE_FRAME => SMALL,
            Self::Data => LARGE,
            Self::Control => CONTROL,
        }
    }
}
