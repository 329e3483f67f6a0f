//! The record of the modules with several replicas of which this node has had an item.
//!
//! A store in memory that a new process begins has lost what the former process acknowledged, and must not answer before
//! it has been built from the other replicas (R5). Without a file here the node has never acknowledged an item of the
//! module, so that there is nothing to lose. A file is durable before the first item is: a file too many costs a
//! needless build, a file too few would make a lost write look like one that never was.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use annulus_core::ids::ModuleUid;
use parking_lot::Mutex;

use super::disk::{Disk, Open};
use super::error::DataDirError;
use super::files::{create_private_dir, remove};

const DIR: &str = "replicated";

/// The record of one node.
#[derive(Debug)]
pub struct ReplicatedModules {
    disk: Disk,
    dir: PathBuf,
    /// The modules of which a former process had items.
    found: HashSet<ModuleUid>,
    /// The modules with a file. Locked while files are created or removed.
    noted: Mutex<HashSet<ModuleUid>>,
}

impl ReplicatedModules {
    /// Read the record that the former processes left.
    ///
    /// # Errors
    /// The directory cannot be created or read. Nothing was changed.
    pub(super) fn open(disk: &Disk, data: &Path) -> Result<Self, DataDirError> {
        let dir = data.join(DIR);
        create_private_dir(disk, &dir)?;
        let io = |source| DataDirError::Io { path: dir.clone(), source };
        let mut found = HashSet::new();
        for entry in disk.list(&dir).map_err(io)? {
            found.extend(entry.name.to_str().and_then(|name| name.parse().ok()).map(ModuleUid));
        }
        Ok(Self { disk: disk.clone(), dir, noted: Mutex::new(found.clone()), found })
    }

    fn path(&self, module: ModuleUid) -> PathBuf {
        self.dir.join(module.0.to_string())
    }

    /// Return true if a former process of this node may have had items of a module.
    pub fn had_items(&self, module: ModuleUid) -> bool {
        self.found.contains(&module)
    }

    /// Return true if the module is recorded already.
    pub fn is_noted(&self, module: ModuleUid) -> bool {
        self.noted.lock().contains(&module)
    }

    /// Record durably that a module is about to have its first item here. Blocks for a sync of the disk.
    ///
    /// # Errors
    /// The module must not get an item.
    pub fn note(&self, module: ModuleUid) -> Result<(), DataDirError> {
        let mut noted = self.noted.lock();
        if noted.contains(&module) {
            return Ok(());
        }
        let path = self.path(module);
        let io = |source| DataDirError::Io { path: path.clone(), source };
        let mut file = self.disk.open(&path, Open::Empty).map_err(io)?;
        file.sync_all().map_err(io)?;
        self.disk.sync_dir(&self.dir).map_err(io)?;
        // The directory itself may be new.
        self.disk.sync_dir(self.dir.parent().unwrap_or(&self.dir)).map_err(io)?;
        noted.insert(module);
        Ok(())
    }

    /// Remove the records of modules that were undeployed.
    pub fn keep(&self, deployed: &[ModuleUid], newest: u64) {
        let mut noted = self.noted.lock();
        // A module's uid is the index of its deploy: one that is later than the state cannot be missing from it.
        let gone: Vec<_> =
            noted.iter().copied().filter(|uid| uid.0 <= newest && !deployed.contains(uid)).collect();
        for module in gone {
            match remove(&self.disk, &self.path(module)) {
                Ok(()) => drop(noted.remove(&module)),
                Err(error) => tracing::warn!(%module, %error, "the record of an undeployed module remains"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: ModuleUid = ModuleUid(7);
    const B: ModuleUid = ModuleUid(8);

    fn open(dir: &Path) -> ReplicatedModules {
        ReplicatedModules::open(&Disk::real(), dir).unwrap()
    }

    #[test]
    fn a_later_process_learns_of_the_items_of_a_former_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        first.note(A).unwrap();
        assert!(first.is_noted(A) && !first.is_noted(B));
        assert!(!first.had_items(A), "this process has lost nothing");
        let second = open(dir.path());
        assert!(second.had_items(A) && !second.had_items(B));
        second.note(B).unwrap();
        // The state that this node knows is from before the deploy of the second module.
        second.keep(&[], A.0);
        let third = open(dir.path());
        assert!(!third.had_items(A) && third.had_items(B));
    }

    #[test]
    fn a_record_that_cannot_be_written_refuses_the_item() {
        let dir = tempfile::tempdir().unwrap();
        let modules = open(dir.path());
        std::fs::remove_dir(dir.path().join(DIR)).unwrap();
        assert!(modules.note(A).is_err() && !modules.is_noted(A));
    }
}
