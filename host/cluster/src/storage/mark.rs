//! The mark: a record of Raft's promises beside the database, which reveals the loss of a promise.
//!
//! An engine treats a damaged end of its journal as a crash in the middle of a write, and drops it. A node
//! that loses a vote or an acknowledged entry in this way can undo a decision of a majority. Therefore the
//! newest vote and entry are also written to the mark, after the database has them and before any peer learns
//! of them. A database that has less than the mark is damaged, and the node may not vote.

use std::io::ErrorKind;
use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::raft::{LogId, Vote};
use annulus_core::codec;
use annulus_data_dir::{Disk, Handle, Open};

/// Size of one of two slots that are written alternately, so that a crash during a write leaves the other.
const SLOT: usize = 256;
const CHECKSUM: usize = 32;

/// The newest promises.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// Number of writes.
    turn: u64,
    /// Number of truncations of the log.
    cuts: u64,
    /// The newest vote.
    pub vote: Option<Vote>,
    /// The newest entry of the log.
    pub last: Option<LogId>,
}

/// The mark: the promises on disk, and those of the next write.
pub struct Mark {
    file: Mutex<(Box<dyn Handle>, Promised)>,
    next: Mutex<Promised>,
}

impl Mark {
    /// Open the mark, or create an empty one. A mark with both slots damaged counts as empty: without the second
    /// witness there is no evidence against the database.
    pub fn open(disk: &Disk, path: &Path) -> std::io::Result<Self> {
        let bytes = match disk.read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let file = disk.open(path, Open::Kept)?;
        let slots = bytes.chunks(SLOT).filter_map(decode);
        let promised = slots.max_by_key(|promised| promised.turn).unwrap_or_default();
        let next = Mutex::new(promised.clone());
        Ok(Self { file: Mutex::new((file, promised)), next })
    }

    /// Return the promises on disk.
    pub fn promised(&self) -> Promised {
        self.file.lock().1.clone()
    }

    /// Set the vote for the next [`Mark::write`]. The database must have it.
    pub fn vote(&self, vote: Vote) {
        self.next.lock().vote = Some(vote);
    }

    /// Set the last entry for the next [`Mark::write`]. The database must have it.
    pub fn last(&self, last: Option<LogId>) {
        self.next.lock().last = last;
    }

    /// Set the last entry before a truncation: the entries after it were never committed.
    pub fn cut(&self, last: Option<LogId>) {
        let mut next = self.next.lock();
        next.cuts += 1;
        next.last = last;
    }

    /// Return the promises for the next [`Mark::write`].
    pub fn next(&self) -> Promised {
        self.next.lock().clone()
    }

    /// Write promises durably.
    pub fn write(&self, next: Promised) -> std::io::Result<()> {
        let mut guard = self.file.lock();
        let (file, noted) = &mut *guard;
        let same = (&next.vote, &next.last) == (&noted.vote, &noted.last);
        // Promises made before a truncation must not be written after it.
        if same || next.cuts < noted.cuts {
            return Ok(());
        }
        let next = Promised { turn: noted.turn + 1, ..next };
        let body = codec::encode(&next).map_err(std::io::Error::other)?;
        let mut slot = [Sha256::digest(&body).as_slice(), &body].concat();
        debug_assert!(slot.len() <= SLOT, "{} bytes", slot.len());
        slot.resize(SLOT, 0);
        file.write_at(SLOT as u64 * (next.turn % 2), &slot)?;
        file.sync_data()?;
        *noted = next;
        Ok(())
    }
}

fn decode(slot: &[u8]) -> Option<Promised> {
    let (sum, body) = slot.split_at_checked(CHECKSUM)?;
    // CBOR is self-delimiting; zeros fill the slot.
    let mut rest = body;
    let promised: Promised = ciborium::from_reader(&mut rest).ok()?;
    let length = body.len() - rest.len();
    (sum == &Sha256::digest(&body[..length])[..]).then_some(promised)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::testing::log_id;

    use super::*;

    #[test]
    fn no_bytes_make_the_mark_panic() {
        use annulus_core::junk::{Target, attack, done};

        let body = codec::encode(&Promised::default()).unwrap();
        let slot = [Sha256::digest(&body).as_slice(), &body].concat();
        attack(&[Target { name: "Mark", valid: vec![slot], decode: |bytes| done(decode(bytes)) }]);
    }

    #[test]
    fn the_newest_whole_note_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        let open = || Mark::open(&Disk::real(), &path).unwrap();
        let note = |term| {
            let mark = open();
            mark.vote(Vote::new(term, 1));
            mark.last(Some(log_id(term, 1, term * 10)));
            mark.write(mark.next()).unwrap();
        };
        assert_eq!(open().promised(), Promised::default());
        (1..=3).for_each(note);
        let read = || open().promised();
        assert_eq!((read().vote, read().last), (Some(Vote::new(3, 1)), Some(log_id(3, 1, 30))));
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let vote = read().vote.unwrap();
            assert!([Vote::new(3, 1), Vote::new(2, 1)].contains(&vote), "{at}: {vote}");
        }
        std::fs::write(&path, []).unwrap();
        assert_eq!(read(), Promised::default());
    }
}
