//! The reserve of free disk space, below which writes are refused: a full disk would end the process.

use std::path::PathBuf;
use std::time::Duration;

use annulus_data_dir::Disk;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest age of a measurement, and the bytes written after which it counts as old. The call takes a microsecond,
/// and much less can be written in this time than the default reserve.
const AGE: Duration = Duration::from_millis(200);
const WRITTEN: u64 = 16 << 20;

/// The reserve of a node's disk, and its free space.
pub(super) struct Reserve {
    disk: Disk,
    dir: PathBuf,
    bytes: u64,
    measured: Mutex<Measured>,
}

struct Measured {
    at: Option<Instant>,
    written: u64,
    free: u64,
}

impl Reserve {
    pub(super) fn new(disk: Disk, dir: PathBuf, bytes: u64) -> Self {
        let measured = Mutex::new(Measured { at: None, written: 0, free: u64::MAX });
        Self { disk, dir, bytes, measured }
    }

    /// Return the reserve in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Note that so many bytes of items were written.
    pub(super) fn wrote(&self, bytes: u64) {
        if self.bytes > 0 {
            self.measured.lock().written += bytes;
        }
    }

    /// Return the free space in bytes, as it was at most 200 ms ago.
    pub(super) fn free(&self) -> u64 {
        let mut measured = self.measured.lock();
        let is_old = measured.at.is_none_or(|at| at.elapsed() >= AGE) || measured.written >= WRITTEN;
        if is_old {
            // A disk that does not tell its free space refuses nothing here; it fails the write itself if it is full.
            let free = self.disk.free(&self.dir).unwrap_or(u64::MAX);
            *measured = Measured { at: Some(Instant::now()), written: 0, free };
        }
        measured.free
    }

    /// Return the reason why nothing may be written now.
    pub(super) fn refuses(&self) -> Option<String> {
        if self.bytes == 0 {
            return None;
        }
        let free = self.free();
        (free < self.bytes).then(|| {
            format!(
                "the disk of this node has {} MiB free, less than its reserve of {} MiB: free space on it, or start the \
                 node with a smaller --disk-reserve",
                free >> 20,
                self.bytes >> 20
            )
        })
    }
}
