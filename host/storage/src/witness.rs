//! The witness: a record of the commit numbers beside the database, which reveals the loss of acknowledged changes.
//!
//! An engine treats a damaged part of its journal as the end of an interrupted write and drops everything behind it. Each
//! commit therefore writes a number into every keyspace that it touches, and afterwards the numbers of all keyspaces into
//! this file. A database whose numbers are lower has lost what was acknowledged.
//!
//! The file is not synced at each commit: it survives the end of the process anyway. After a loss of power it may be a
//! second behind, and then notices less; it is never ahead of the database.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use annulus_core::codec;
use annulus_data_dir::{Disk, Handle, Open};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::committer::SpaceNumber;

/// Size of one of two slots. Between two syncs only one of them is written, so that a loss of power leaves the other. It
/// has room for the numbers of some 200 keyspaces; those of further ones are not recorded.
const SLOT: usize = 4096;
const CHECKSUM: usize = 32;
const MAX_SPACES: usize = 200;
/// The longest time for which the file is behind on disk while there are commits.
pub(super) const SYNC_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// Number of writes.
    turn: u64,
    numbers: BTreeMap<SpaceNumber, u64>,
}

/// The open file.
pub(super) struct Witness {
    file: Box<dyn Handle>,
    noted: Noted,
    /// The slot to write. The other one is on disk.
    slot: u64,
    /// Time of the first write since the last sync.
    behind_since: Option<Instant>,
}

impl Witness {
    /// Open the file, or create an empty one. A file with both slots damaged counts as empty: without the second record
    /// there is no evidence against the database.
    pub(super) fn open(disk: &Disk, path: &Path) -> std::io::Result<Self> {
        let bytes = match disk.read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let file = disk.open(path, Open::Kept)?;
        let noted = bytes.chunks(SLOT).filter_map(decode).max_by_key(|noted| noted.turn).unwrap_or_default();
        let newest = bytes.chunks(SLOT).position(|slot| decode(slot).as_ref() == Some(&noted));
        let slot = newest.map_or(0, |newest| 1 - (newest as u64).min(1));
        Ok(Self { file, noted, slot, behind_since: None })
    }

    /// Return the numbers of the last write.
    pub(super) fn noted(&self) -> &BTreeMap<SpaceNumber, u64> {
        &self.noted.numbers
    }

    /// Return true if the last write may not be on disk.
    pub(super) fn is_behind(&self) -> bool {
        self.behind_since.is_some()
    }

    /// Write numbers that are in the database. Sync the file if the last sync was too long ago.
    pub(super) fn note(&mut self, numbers: &BTreeMap<SpaceNumber, u64>) -> std::io::Result<()> {
        let numbers = numbers.iter().take(MAX_SPACES).map(|(space, number)| (*space, *number)).collect();
        self.noted = Noted { turn: self.noted.turn + 1, numbers };
        let body = codec::encode(&self.noted).map_err(std::io::Error::other)?;
        let mut slot = [Sha256::digest(&body).as_slice(), &body].concat();
        debug_assert!(slot.len() <= SLOT, "{} bytes", slot.len());
        slot.resize(SLOT, 0);
        self.file.write_at(SLOT as u64 * self.slot, &slot)?;
        let since = *self.behind_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= SYNC_AFTER { self.sync() } else { Ok(()) }
    }

    /// Sync the file, unless it is on disk.
    pub(super) fn sync(&mut self) -> std::io::Result<()> {
        if self.behind_since.take().is_some() {
            self.file.sync_data()?;
            self.slot = 1 - self.slot;
        }
        Ok(())
    }
}

fn decode(slot: &[u8]) -> Option<Noted> {
    let (sum, body) = slot.split_at_checked(CHECKSUM)?;
    // CBOR is self-delimiting; zeros fill the slot.
    let mut rest = body;
    let noted: Noted = ciborium::from_reader(&mut rest).ok()?;
    let length = body.len() - rest.len();
    (sum == &Sha256::digest(&body[..length])[..]).then_some(noted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_bytes_make_the_witness_panic() {
        use annulus_core::junk::{Target, attack, done};

        let mut body = Vec::new();
        ciborium::into_writer(&Noted::default(), &mut body).unwrap();
        let slot = [Sha256::digest(&body).as_slice(), &body].concat();
        attack(&[Target { name: "witness", valid: vec![slot], decode: |bytes| done(decode(bytes)) }]);
    }

    #[test]
    fn the_newest_whole_write_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.mark");
        let open = || Witness::open(&Disk::real(), &path).unwrap();
        assert!(open().noted().is_empty());
        for number in 1..=3 {
            open().note(&BTreeMap::from([(0, number), (9, 10 * number)])).unwrap();
        }
        assert_eq!(open().noted(), &BTreeMap::from([(0, 3), (9, 30)]));
        let good = std::fs::read(&path).unwrap();
        for at in (0..80).chain(SLOT..SLOT + 80) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let number = open().noted()[&0];
            assert!([2, 3].contains(&number), "{at}: {number}");
        }
        std::fs::write(&path, []).unwrap();
        assert!(open().noted().is_empty());
    }

    #[test]
    fn a_loss_of_power_never_leaves_less_than_the_last_sync() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.mark");
        let mut witness = Witness::open(&Disk::real(), &path).unwrap();
        let numbers = |number: u64| BTreeMap::from([(0, number)]);
        for number in 1..=9u64 {
            witness.note(&numbers(number)).unwrap();
            if number % 3 == 0 {
                witness.sync().unwrap();
            } else if number > 3 {
                // Everything since the last sync is torn.
                let mut bytes = std::fs::read(&path).unwrap();
                let at = SLOT * usize::try_from(witness.slot).unwrap();
                let end = bytes.len().min(at + SLOT);
                bytes[at..end].fill(0xee);
                let torn = dir.path().join("torn");
                std::fs::write(&torn, &bytes).unwrap();
                let left = Witness::open(&Disk::real(), &torn).unwrap();
                assert_eq!(left.noted(), &numbers(number / 3 * 3));
            }
        }
    }

    #[test]
    fn the_largest_record_fits_its_slot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.mark");
        let numbers = (0..MAX_SPACES as u64 + 50).map(|space| (u64::MAX - space, u64::MAX)).collect();
        let mut witness = Witness::open(&Disk::real(), &path).unwrap();
        witness.note(&numbers).unwrap();
        assert!(witness.is_behind());
        witness.sync().unwrap();
        assert!(!witness.is_behind());
        assert_eq!(Witness::open(&Disk::real(), &path).unwrap().noted().len(), MAX_SPACES);
    }
}
