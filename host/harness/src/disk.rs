//! Disks of simulated nodes: in memory, with as few guarantees after a crash as a real disk may give.
//!
//! A [`MemoryDisk`] outlives the processes that use it. Each process, called a life in the code, gets a
//! [`MemoryDisk::disk`] and ends in one of the ways of [`Crash`]. The next process finds these contents:
//!
//! | | killed | without power |
//! |---|---|---|
//! | database | all batches except those not yet handed to the system, of which any prefix remains | persisted batches, and any prefix of the single journal after them |
//! | file | all writes | synced contents, and any prefix of the writes since, torn at any byte |
//! | directory | all entries | synced entries, and any prefix of the changes since |
//!
//! Each file, each directory and the database loses data independently. Data that a killed process leaves is
//! still not on disk: a loss of power during the next process may take it. Every operation that changes
//! something is a point at which a node may die ([`MemoryDisk::die_at`]). All choices are drawn from the random
//! number generator that the caller passes in.

mod engine;
mod tree;

use std::fmt;
use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use annulus_data_dir::{
    Access, DataDirError, Disk, Engine, EngineOptions, Entry, Files, Handle, Lock, Open, Trouble,
};
use annulus_ground::{Scope, die};
use parking_lot::{Mutex, MutexGuard};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use engine::MemoryEngine;
use tree::{Node, NodeId, Tree, not_found};

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process ends; the operating system continues.
    Killed,
    /// The machine stops.
    PowerLoss,
}

/// The disk of one machine. Clones refer to the same disk.
#[derive(Clone)]
pub struct MemoryDisk {
    shared: Arc<Mutex<State>>,
}

/// A copy of a disk's contents.
#[derive(Clone)]
pub struct Image(Tree);

struct State {
    tree: Tree,
    choices: SmallRng,
    times: SmallRng,
    life: u64,
    /// Set when the current process is ending. From then on its operations have no effect.
    cut: bool,
    full: bool,
    /// Free bytes of a disk that is not full.
    free: u64,
    broken: bool,
    operations: u64,
    die_at: Option<u64>,
    /// The operation at which the last process died.
    died: Option<String>,
    locks: Vec<PathBuf>,
    /// Files that the current process has open.
    open: Vec<PathBuf>,
}

/// The system's error number for a full disk.
const ENOSPC: i32 = 28;
/// The system's error number for a failing disk.
const EIO: i32 = 5;

/// Free bytes of a new disk.
const FREE_BYTES: u64 = 1 << 40;

/// Usual upper limit of the time of a sync, in microseconds.
const SYNC_US: u64 = 20_000;
/// One sync in this many is slow and takes up to [`SLOW_SYNC_US`].
const SLOW_ONE_IN: u32 = 50;
const SLOW_SYNC_US: u64 = 500_000;

impl MemoryDisk {
    /// Create an empty disk whose crashes and delays are drawn from `choices`.
    pub fn new(mut choices: SmallRng) -> Self {
        let times = SmallRng::seed_from_u64(choices.next_u64());
        let state = State {
            tree: Tree::default(),
            choices,
            times,
            life: 0,
            cut: false,
            full: false,
            free: FREE_BYTES,
            broken: false,
            operations: 0,
            die_at: None,
            died: None,
            locks: Vec::new(),
            open: Vec::new(),
        };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    /// Return the disk as the current process uses it.
    pub fn disk(&self) -> Disk {
        let number = self.shared.lock().life;
        Disk::new(Life { shared: self.shared.clone(), number })
    }

    /// Let all further operations of the current process have no effect. Must be called before its tasks are
    /// ended.
    pub fn cut(&self) {
        self.shared.lock().cut = true;
    }

    /// End the current process and start the next one.
    pub fn crash(&self, how: Crash) {
        let mut state = self.shared.lock();
        let State { tree, choices, .. } = &mut *state;
        match how {
            Crash::Killed => tree.kill(choices),
            Crash::PowerLoss => tree.lose_power(choices),
        }
        state.begin_life();
    }

    /// Return a copy of the current contents, as a copy of the whole disk would have them.
    pub fn image(&self) -> Image {
        Image(self.shared.lock().tree.copy())
    }

    /// End the current process; the next one finds the copied contents.
    pub fn restore(&self, image: &Image) {
        let mut state = self.shared.lock();
        state.tree = image.0.clone();
        state.begin_life();
    }

    /// End the current process; the next one finds an empty disk.
    pub fn wipe(&self) {
        let mut state = self.shared.lock();
        state.tree = Tree::default();
        state.begin_life();
    }

    /// Set whether the disk is full. Operations that need space fail then.
    pub fn fill(&self, full: bool) {
        self.shared.lock().full = full;
    }

    /// Set the number of free bytes that the disk reports. Writes succeed whatever it is, and do not change it.
    pub fn leave(&self, bytes: u64) {
        self.shared.lock().free = bytes;
    }

    /// Set whether syncs fail.
    pub fn break_syncs(&self, broken: bool) {
        self.shared.lock().broken = broken;
    }

    /// Return the files that the current process has open, one entry for each handle.
    pub fn open_files(&self) -> Vec<PathBuf> {
        self.shared.lock().open.clone()
    }

    /// Return the number of changes and syncs so far.
    pub fn operations(&self) -> u64 {
        self.shared.lock().operations
    }

    /// Let the process die just before this operation, counted as by [`MemoryDisk::operations`]. With `None`
    /// the process does not die.
    pub fn die_at(&self, operation: Option<u64>) {
        self.shared.lock().die_at = operation;
    }

    /// Return the operation at which the last process died.
    pub fn died(&self) -> Option<String> {
        self.shared.lock().died.clone()
    }
}

impl State {
    fn begin_life(&mut self) {
        self.life += 1;
        self.cut = false;
        self.die_at = None;
        self.locks.clear();
        self.open.clear();
    }

    /// Draw the time of a sync.
    fn sync_time(&mut self) -> Duration {
        let slow = self.times.random_range(0..SLOW_ONE_IN) == 0;
        Duration::from_micros(self.times.random_range(100..=if slow { SLOW_SYNC_US } else { SYNC_US }))
    }
}

/// A precondition of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Room,
    Sync,
    Nothing,
}

/// The disk as one process uses it.
#[derive(Clone)]
struct Life {
    shared: Arc<Mutex<State>>,
    number: u64,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk").field("life", &self.number).finish_non_exhaustive()
    }
}

impl Life {
    /// Count an operation and check its preconditions. Return `None` if the operation must have no effect,
    /// because a destructor of a dead node calls it.
    fn step(&self, what: &str, path: &Path, needs: Needs) -> io::Result<Option<MutexGuard<'_, State>>> {
        let dead = std::thread::panicking() || Scope::current().is_some_and(|scope| scope.is_dead());
        let mut state = self.shared.lock();
        if dead || state.cut || state.life != self.number {
            return Ok(None);
        }
        state.operations += 1;
        if state.die_at == Some(state.operations) {
            state.cut = true;
            state.died = Some(format!("{what} {}", path.display()));
            drop(state);
            die();
        }
        match needs {
            Needs::Room if state.full => Err(io::Error::from_raw_os_error(ENOSPC)),
            Needs::Sync if state.broken => Err(io::Error::from_raw_os_error(EIO)),
            _ => Ok(Some(state)),
        }
    }

    /// Carry out an operation on the tree.
    fn change(
        &self,
        what: &str,
        path: &Path,
        needs: Needs,
        change: impl FnOnce(&mut Tree) -> io::Result<()>,
    ) -> io::Result<()> {
        self.step(what, path, needs)?.map_or(Ok(()), |mut state| change(&mut state.tree))
    }
}

impl Files for Life {
    fn create_dir(&self, path: &Path, _: Access) -> io::Result<()> {
        if self.is_there(path) {
            return Ok(());
        }
        self.change("create the directory", path, Needs::Room, |tree| tree.create_dir(path).map(drop))
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn Handle>> {
        let there = self.shared.lock().tree.find(path);
        let node = match (there, how) {
            (Some(_), Open::Private) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(node), Open::Kept) => node,
            (Some(node), Open::Empty) => {
                self.change("empty", path, Needs::Nothing, |tree| tree.file(node).map(tree::File::empty))?;
                node
            }
            (None, _) => match self.step("create", path, Needs::Room)? {
                Some(mut state) => state.tree.add(path, Node::File(tree::File::default()))?,
                None => NodeId::default(),
            },
        };
        let mut state = self.shared.lock();
        if state.life == self.number {
            state.open.push(path.to_owned());
        }
        drop(state);
        Ok(Box::new(OpenFile { life: self.clone(), path: path.to_owned(), node }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.shared.lock();
        let node = state.tree.find(path).ok_or_else(not_found)?;
        Ok(state.tree.file(node)?.read().to_vec())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change("rename", from, Needs::Nothing, |tree| tree.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !self.is_there(path) {
            return Err(not_found());
        }
        self.change("remove", path, Needs::Nothing, |tree| tree.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        if !self.is_there(path) {
            return Err(not_found());
        }
        // Directories are removed file by file, so a crash may leave half a database.
        self.change("remove the first half of", path, Needs::Nothing, |tree| tree.damage(path))?;
        self.change("remove the rest of", path, Needs::Nothing, |tree| tree.remove(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.shared.lock().tree.list(path)
    }

    fn is_there(&self, path: &Path) -> bool {
        self.shared.lock().tree.find(path).is_some()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change("sync the directory", path, Needs::Sync, |tree| tree.sync_dir(path))
    }

    fn lock(&self, path: &Path) -> Result<Lock, TryLockError> {
        drop(self.open(path, Open::Kept).map_err(TryLockError::Error)?);
        let mut state = self.shared.lock();
        if state.locks.iter().any(|taken| taken == path) {
            return Err(TryLockError::WouldBlock);
        }
        state.locks.push(path.to_owned());
        Ok(Box::new(Taken { life: self.clone(), path: path.to_owned() }))
    }

    fn free(&self, _: &Path) -> io::Result<u64> {
        let state = self.shared.lock();
        Ok(if state.full { 0 } else { state.free })
    }

    fn engine(&self, path: &Path, _: &EngineOptions) -> Result<Arc<dyn Engine>, DataDirError> {
        let no = |source: Trouble| DataDirError::Database { path: path.to_owned(), source };
        let there = self.shared.lock().tree.find(path);
        let node = match there {
            Some(node) => node,
            None => {
                match self.step("create the database", path, Needs::Room).map_err(|error| no(error.into()))? {
                    Some(mut state) => {
                        let made = state.tree.add(path, Node::Store(Default::default()));
                        made.map_err(|error| no(error.into()))?
                    }
                    None => return Err(no(not_found().into())),
                }
            }
        };
        let mut state = self.shared.lock();
        let store = state.tree.store(node).map_err(|error| no(error.into()))?;
        if store.is_damaged() {
            return Err(DataDirError::Corrupt { path: path.to_owned(), reason: "half of it is gone".into() });
        }
        if !store.open(self.number) {
            return Err(no(Trouble::Locked));
        }
        drop(state);
        let engine = MemoryEngine { life: self.clone(), node, path: path.to_owned() };
        let broken = |source| DataDirError::Io { path: path.to_owned(), source };
        if let Some(mut state) = self.step("sync the opened database", path, Needs::Sync).map_err(broken)? {
            state.tree.store(node).map_err(broken)?.sync_found();
        }
        Ok(Arc::new(engine))
    }
}

/// A held lock.
struct Taken {
    life: Life,
    path: PathBuf,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.life.shared.lock();
        if state.life == self.life.number {
            state.locks.retain(|path| *path != self.path);
        }
    }
}

/// An open file.
struct OpenFile {
    life: Life,
    path: PathBuf,
    node: NodeId,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut state = self.life.shared.lock();
        if state.life == self.life.number
            && let Some(at) = state.open.iter().position(|path| *path == self.path)
        {
            state.open.swap_remove(at);
        }
    }
}

impl Handle for OpenFile {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        self.life.change("write", &self.path, Needs::Room, |tree| {
            tree.file(self.node).map(|file| file.write(at, bytes))
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.life.change("sync", &self.path, Needs::Sync, |tree| tree.file(self.node).map(tree::File::sync))
    }
}
