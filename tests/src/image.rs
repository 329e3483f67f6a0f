//! A file system in a file: a disk whose power fails at will, and one that is small enough to fill.
//!
//! The file is mounted through a loop device. Writes that were not synced are in the page cache of the mounted file
//! system and not in the file, so a copy of the file holds what a disk would hold after a loss of power.
//!
//! Mounting needs privileges. A test that gets [`Unavailable`] must say that it is skipped.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The reason why this machine mounts no images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine mounts no disk images: {}", self.0)
    }
}

/// Seconds between two commits of the file system's journal that nobody asked for: more than any run, so that only a
/// sync makes a write durable.
const COMMIT_S: u32 = 36_000;
/// Number of copies before a copy that changed meanwhile is an error.
const COPIES: u32 = 20;

/// A mounted image. Dropping it unmounts it and deletes its file.
#[derive(Debug)]
pub struct Image {
    file: PathBuf,
    at: PathBuf,
    copies: u32,
}

impl Image {
    /// Create an empty file system of this size in `file` and mount it at `at`, a directory that does not exist yet.
    ///
    /// # Errors
    /// The programs or the privileges are missing.
    ///
    /// # Panics
    /// If the file or the directory cannot be created.
    pub fn create(file: PathBuf, at: PathBuf, mib: u64) -> Result<Self, Unavailable> {
        let created = File::create(&file).and_then(|file| file.set_len(mib << 20));
        created.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        fs::create_dir_all(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        // Everything is initialised now: the kernel writes nothing by itself later.
        let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let mut mkfs = Command::new("mkfs.ext4");
        said(mkfs.args(["-q", "-F", "-m", "0", "-E", options]).arg(&file)).map_err(Unavailable)?;
        mount(&file, &at).map_err(Unavailable)?;
        Ok(Self { file, at, copies: 0 })
    }

    /// Return the directory at which the image is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Copy what is durable at this moment. All processes that write to the image must be stopped.
    ///
    /// # Panics
    /// If the file cannot be copied, or the kernel goes on writing to it.
    pub fn copy(&mut self) -> Durable {
        let copy = self.file.with_extension(format!("copy-{}", self.copies));
        self.copies += 1;
        for _ in 0..COPIES {
            // Holes stay holes: most of an image is never written.
            said(Command::new("cp").arg("--sparse=always").arg(&self.file).arg(&copy))
                .unwrap_or_else(|error| panic!("{}: {error}", copy.display()));
            // A disk stops at one moment. So must a copy: one that no write has overtaken is equal to its source.
            if equal(&self.file, &copy).unwrap_or_else(|error| panic!("{}: {error}", copy.display())) {
                return Durable(copy);
            }
        }
        panic!("{} changes all the time", self.file.display());
    }

    /// Continue with a copy, as after a loss of power. The processes that used the image must have ended.
    ///
    /// # Panics
    /// If the copy cannot be mounted: a journalling file system survives a loss of power.
    pub fn continue_with(&mut self, copy: Durable) {
        unmount(&self.at);
        let Durable(copy) = copy;
        fs::rename(&copy, &self.file).unwrap_or_else(|error| panic!("{}: {error}", copy.display()));
        mount(&self.file, &self.at).unwrap_or_else(|error| panic!("{}: {error}", self.file.display()));
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        unmount(&self.at);
        // This fails only if the test's directory is gone already.
        drop(fs::remove_file(&self.file));
    }
}

/// The state that a loss of power would leave.
#[derive(Debug)]
pub struct Durable(PathBuf);

fn mount(file: &Path, at: &Path) -> Result<(), String> {
    let options = format!("loop,noatime,commit={COMMIT_S}");
    said(Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(file).arg(at))
}

/// Unmount lazily: a client may be reading a file of the image at this moment.
fn unmount(at: &Path) {
    if let Err(why) = said(Command::new("umount").arg("-l").arg(at)) {
        eprintln!("{} stays mounted: {why}", at.display());
    }
}

/// Run a program, and return what it said if it failed.
fn said(command: &mut Command) -> Result<(), String> {
    let ran = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&ran.stderr).trim_end()))
}

fn equal(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(other.read(&mut right[..1])? == 0);
        }
        other.read_exact(&mut right[..read])?;
        if left[..read] != right[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    /// The loop of losses of power proves nothing if a copy also holds what was not synced.
    #[test]
    fn a_copy_holds_what_was_synced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut image = match Image::create(dir.path().join("disk"), dir.path().join("mounted"), 32) {
            Ok(image) => image,
            Err(why) => return eprintln!("SKIPPED: {why}"),
        };
        let place = |name: &str| dir.path().join("mounted").join(name);
        let mut synced = File::create(place("synced")).unwrap();
        synced.write_all(b"kept").unwrap();
        synced.sync_all().unwrap();
        File::open(image.path()).unwrap().sync_all().unwrap();
        // The file and its length are durable; what is written now is not.
        synced.write_all(b" and lost").unwrap();
        fs::write(place("never synced"), "lost").unwrap();
        let durable = image.copy();
        drop(synced);
        image.continue_with(durable);
        assert_eq!(fs::read(place("synced")).unwrap(), b"kept");
        assert!(!place("never synced").exists());
    }
}
