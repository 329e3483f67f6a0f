//! What Raft has promised, beside the database: so that a damaged one does not forget unnoticed.
//!
//! An engine that finds the end of its journal damaged takes that for a crash in the middle of a
//! write, and goes on without it. A node that so forgets a vote, or an entry that it acknowledged,
//! can undo what a majority has agreed on. Therefore the newest vote and entry are noted here too,
//! after the database has them and before anybody is told; a database that has less is damaged, and
//! this node may not vote.

use std::io::ErrorKind;
use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::raft::{LogId, Vote};
use annulus_core::codec;
use annulus_data_dir::{Disk, Handle, Open};

/// Two places are written in turns, so that a crash in the middle of one leaves the other.
const PLACE: usize = 256;
const CHECKSUM: usize = 32;

/// What was promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// Counts the writes.
    turn: u64,
    /// Counts the times that the log was cut back.
    cuts: u64,
    /// The newest vote.
    pub vote: Option<Vote>,
    /// The newest entry of the log.
    pub last: Option<LogId>,
}

/// The note, on disk and what is to be written next.
pub struct Mark {
    file: Mutex<(Box<dyn Handle>, Promised)>,
    next: Mutex<Promised>,
}

impl Mark {
    /// Opens the note, or makes an empty one. A note of which both places are damaged is an empty
    /// one: it is the second witness, and says nothing against the database.
    pub fn open(disk: &Disk, path: &Path) -> std::io::Result<Self> {
        let bytes = match disk.read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let file = disk.open(path, Open::Kept)?;
        let places = bytes.chunks(PLACE).filter_map(decode);
        let promised = places.max_by_key(|promised| promised.turn).unwrap_or_default();
        let next = Mutex::new(promised.clone());
        Ok(Self { file: Mutex::new((file, promised)), next })
    }

    /// What was noted last.
    pub fn promised(&self) -> Promised {
        self.file.lock().1.clone()
    }

    /// The database has this vote; it is noted with the next [`Mark::write`].
    pub fn vote(&self, vote: Vote) {
        self.next.lock().vote = Some(vote);
    }

    /// The database has the log up to here; it is noted with the next [`Mark::write`].
    pub fn last(&self, last: Option<LogId>) {
        self.next.lock().last = last;
    }

    /// The log is about to be cut back to here, because the rest was never agreed on.
    pub fn cut(&self, last: Option<LogId>) {
        let mut next = self.next.lock();
        next.cuts += 1;
        next.last = last;
    }

    /// What a [`Mark::write`] would note now.
    pub fn next(&self) -> Promised {
        self.next.lock().clone()
    }

    /// Notes it durably.
    pub fn write(&self, next: Promised) -> std::io::Result<()> {
        let mut guard = self.file.lock();
        let (file, noted) = &mut *guard;
        let same = (&next.vote, &next.last) == (&noted.vote, &noted.last);
        // What was true before a cut is not to be noted after it.
        if same || next.cuts < noted.cuts {
            return Ok(());
        }
        let next = Promised { turn: noted.turn + 1, ..next };
        let body = codec::encode(&next).map_err(std::io::Error::other)?;
        let mut place = [Sha256::digest(&body).as_slice(), &body].concat();
        debug_assert!(place.len() <= PLACE, "{} bytes", place.len());
        place.resize(PLACE, 0);
        file.write_at(PLACE as u64 * (next.turn % 2), &place)?;
        file.sync_data()?;
        *noted = next;
        Ok(())
    }
}

fn decode(place: &[u8]) -> Option<Promised> {
    let (sum, body) = place.split_at_checked(CHECKSUM)?;
    // CBOR tells its own length; zeros fill the place.
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
