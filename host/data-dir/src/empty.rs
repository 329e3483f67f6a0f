//! The record of the modules that have had no item on this node since its process started.
//!
//! Items in memory end with the process, so a restart may have lost some of every module. A file per module
//! states that the module never had an item here, and is removed with the first one. A missing file costs a
//! false alert; with files for modules that do have items, a missing file would hide a loss. A full disk, an
//! older build or a crash can only leave too few of these files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use annulus_core::ids::ModuleUid;
use parking_lot::{Mutex, RwLock};

use super::disk::{Disk, Open};
use super::error::DataDirError;
use super::files::{create_private_dir, remove};

const DIR: &str = "empty";

/// The record of one node.
#[derive(Debug)]
pub struct EmptyModules {
    disk: Disk,
    dir: PathBuf,
    /// Modules with an item since the start. Undeployed modules stay, because the caller of
    /// [`EmptyModules::note`] may not know yet of a module that has items.
    filled: RwLock<HashSet<ModuleUid>>,
    /// Modules with a file, as far as known. Locked while files are created or removed.
    noted: Mutex<HashSet<ModuleUid>>,
}

impl EmptyModules {
    /// Read the record that the former process left.
    ///
    /// # Errors
    /// The directory cannot be created or read. Nothing was changed.
    pub(super) fn open(disk: &Disk, data: &Path) -> Result<Self, DataDirError> {
        let dir = data.join(DIR);
        create_private_dir(disk, &dir)?;
        let io = |source| DataDirError::Io { path: dir.clone(), source };
        let mut noted = HashSet::new();
        for entry in disk.list(&dir).map_err(io)? {
            noted.extend(entry.name.to_str().and_then(|name| name.parse().ok()).map(ModuleUid));
        }
        Ok(Self { disk: disk.clone(), dir, filled: RwLock::default(), noted: Mutex::new(noted) })
    }

    fn path(&self, module: ModuleUid) -> PathBuf {
        self.dir.join(module.0.to_string())
    }

    /// Return true if a module has had no item here, in this run or before it.
    pub fn is_empty(&self, module: ModuleUid) -> bool {
        self.noted.lock().contains(&module)
    }

    /// Return true if [`EmptyModules::fill`] was called for a module in this run.
    pub fn is_filled(&self, module: ModuleUid) -> bool {
        self.filled.read().contains(&module)
    }

    /// Record durably that a module has an item, so that a restart, even after a loss of power, reports it as
    /// lost. The first call for a module blocks for a sync of the disk.
    pub fn fill(&self, module: ModuleUid) {
        let mut noted = self.noted.lock();
        if noted.remove(&module)
            && let Err(error) = remove(&self.disk, &self.path(module))
        {
            tracing::error!(%module, %error, "a restart may not name this module's items in memory as lost");
        }
        self.filled.write().insert(module);
    }

    /// Record which of the deployed modules are empty, and remove the files of all others. The losses of the
    /// former process must have been reported.
    pub fn note(&self, modules: impl IntoIterator<Item = ModuleUid>) {
        let mut noted = self.noted.lock();
        let deployed: HashSet<ModuleUid> = modules.into_iter().collect();
        let mut failed = None;
        let gone: Vec<ModuleUid> = noted.difference(&deployed).copied().collect();
        for module in gone {
            failed = remove(&self.disk, &self.path(module)).err().or(failed);
            noted.remove(&module);
        }
        for module in deployed {
            if self.is_filled(module) || noted.contains(&module) {
                continue;
            }
            match self.disk.open(&self.path(module), Open::Empty) {
                Ok(_) => drop(noted.insert(module)),
                Err(source) => failed = Some(DataDirError::Io { path: self.path(module), source }),
            }
        }
        if let Some(error) = failed {
            tracing::warn!(%error, "a restart may name modules as lost that have no items");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: ModuleUid = ModuleUid(7);
    const B: ModuleUid = ModuleUid(8);

    #[test]
    fn only_a_module_that_surely_had_no_item_is_empty_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = EmptyModules::open(&Disk::real(), dir.path()).unwrap();
        assert!(!first.is_empty(A), "it was not recorded as empty");
        first.note([A, B]);
        first.fill(A);
        assert!(first.is_filled(A) && !first.is_filled(B) && !first.is_empty(A));
        // A caller that does not know of the item records the module again.
        first.note([A, B]);
        let second = EmptyModules::open(&Disk::real(), dir.path()).unwrap();
        assert!(!second.is_empty(A) && second.is_empty(B));
        // Until its loss is reported the module's record stays unchanged, and an item may arrive in that
        // time.
        second.fill(A);
        second.note([A]);
        let third = EmptyModules::open(&Disk::real(), dir.path()).unwrap();
        assert!(!third.is_empty(A) && !third.is_empty(B), "a module that is gone is forgotten");
        third.note([A]);
        assert!(EmptyModules::open(&Disk::real(), dir.path()).unwrap().is_empty(A));
    }

    #[test]
    fn a_note_that_cannot_be_written_leaves_a_module_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let modules = EmptyModules::open(&Disk::real(), dir.path()).unwrap();
        std::fs::remove_dir(dir.path().join(DIR)).unwrap();
        modules.note([A]);
        assert!(!modules.is_empty(A));
    }
}
