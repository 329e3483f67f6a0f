//! The number of the node's starts from its directory, which distinguishes a restored copy from the original.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::DataDirError;
use super::sealed;

/// The two files are written alternately. A damaged file may have been one ahead of the other, so the next
/// start skips that number.
const FILES: [&str; 2] = ["STARTS-a", "STARTS-b"];

#[derive(Serialize, Deserialize)]
struct Starts {
    number: u64,
}

/// Increment the number durably, and return it.
pub(super) fn count(disk: &Disk, dir: &Path) -> Result<u64, DataDirError> {
    let [a, b] = FILES.map(|name| sealed::read::<Starts>(disk, dir, name));
    // The damaged file is overwritten, or else the older one.
    let (last, next) = match (a, b) {
        (Ok(None), Ok(None)) => {
            // Both files exist from the first start on.
            sealed::write(disk, dir, FILES[1], &Starts { number: 0 })?;
            (0, 0)
        }
        (Ok(a), Ok(b)) => {
            let (a, b) = (a.map_or(0, |a| a.number), b.map_or(0, |b| b.number));
            (a.max(b), usize::from(a > b))
        }
        (Err(error), Ok(Some(whole))) => (after_damage(&error, &whole), 0),
        (Ok(Some(whole)), Err(error)) => (after_damage(&error, &whole), 1),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let number = last + 1;
    sealed::write(disk, dir, FILES[next], &Starts { number })?;
    Ok(number)
}

/// Return the last number that a start may have had, with one of the files damaged.
fn after_damage(error: &DataDirError, whole: &Starts) -> u64 {
    tracing::warn!(%error, "the other count of this node's starts is used");
    whole.number + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_number_comes_twice_even_with_one_file_damaged() {
        let disk = Disk::real();
        let dir = tempfile::tempdir().unwrap();
        let count = |dir: &Path| super::count(&disk, dir);
        assert_eq!((1..=5).map(|_| count(dir.path()).unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let young = tempfile::tempdir().unwrap();
        count(young.path()).unwrap();
        std::fs::write(young.path().join(FILES[0]), "junk").unwrap();
        assert_eq!(count(young.path()).unwrap(), 2);
        for name in FILES {
            let last = count(dir.path()).unwrap();
            std::fs::write(dir.path().join(name), "junk").unwrap();
            assert!(count(dir.path()).unwrap() > last);
            let last = count(dir.path()).unwrap();
            assert!(count(dir.path()).unwrap() > last);
        }
        for name in FILES {
            std::fs::write(dir.path().join(name), "junk").unwrap();
        }
        assert!(count(dir.path()).unwrap_err().to_string().contains("STARTS-a"));
    }
}
