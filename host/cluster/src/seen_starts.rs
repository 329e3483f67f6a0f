//! The newest start seen of each other node, on disk.

use annulus_core::codec;
use annulus_core::ids::{NodeUid, Start};
use annulus_data_dir::{Space, Store, Trouble, fatal};

/// Starts of other nodes. Clones share them.
#[derive(Clone)]
pub(super) struct SeenStarts {
    space: Space,
}

impl SeenStarts {
    pub(super) fn open(database: &Store) -> Result<Self, Trouble> {
        Ok(Self { space: database.space("starts")? })
    }

    /// Return the newest start seen of a node.
    pub(super) fn newest(&self, uid: NodeUid) -> Option<Start> {
        let known = self.space.get(uid.0).unwrap_or_else(|error| fatal(&error));
        known.and_then(|bytes| codec::decode(&bytes).ok())
    }

    /// Return the newest start seen of a node, unless it is this one.
    pub(super) fn other_than(&self, uid: NodeUid, start: Start) -> Option<Start> {
        self.newest(uid).filter(|known| *known != start)
    }

    /// Store a start, and return the newest other one seen before.
    pub(super) fn note(&self, uid: NodeUid, start: Start) -> Option<Start> {
        let known = self.newest(uid);
        if known.is_none_or(|known| known.number < start.number)
            && let Ok(bytes) = codec::encode(&start)
        {
            self.space.insert(uid.0, bytes).unwrap_or_else(|error| fatal(&error));
        }
        known.filter(|known| *known != start)
    }
}
