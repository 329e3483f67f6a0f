//! A locked data directory.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};

use annulus_core::ids::NodeUid;
use parking_lot::Mutex;

use super::admin_toml::AdminToml;
use super::authority_file::AuthorityFile;
use super::disk::{Disk, Lock};
use super::empty::EmptyModules;
use super::engine::{EngineOptions, Trouble};
use super::error::DataDirError;
use super::founding::Founding;
use super::identity::{Credentials, Identity};
use super::join_intent::JoinIntent;
use super::layout::{FOUNDING, HINTS_LAYOUT, ITEMS_LAYOUT, JOIN, LOCK, REPLICAS_LAYOUT};
use super::replicated::ReplicatedModules;
use super::store::Store;
use super::{aside, files, starts};

/// A locked data directory. Dropping it releases the lock.
#[derive(Debug)]
pub struct DataDir {
    disk: Disk,
    path: PathBuf,
    /// Locked while `IDENTITY` is read and replaced.
    identity: Mutex<()>,
    /// Released when this is dropped.
    _lock: Lock,
}

impl DataDir {
    /// Lock a directory of the system's disk. Create it if it is missing.
    pub fn lock(path: &Path) -> Result<Self, DataDirError> {
        Self::lock_on(&Disk::real(), path)
    }

    /// Lock a directory of a disk. Create it if it is missing.
    pub fn lock_on(disk: &Disk, path: &Path) -> Result<Self, DataDirError> {
        files::create_private_dir(disk, path)?;
        let lock_path = path.join(LOCK);
        match disk.lock(&lock_path) {
            Ok(lock) => {
                let (path, identity) = (path.to_owned(), Mutex::default());
                Ok(Self { disk: disk.clone(), path, identity, _lock: lock })
            }
            Err(TryLockError::WouldBlock) => Err(DataDirError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(DataDirError::Io { path: lock_path, source }),
        }
    }

    /// Return the disk of the directory.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Open the database, or create it.
    pub fn database(&self) -> Result<Store, DataDirError> {
        self.disk.database(&self.database_path())
    }

    /// Return the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Return the path of the database.
    pub fn database_path(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Read the node's identity, which must have this name. Return `None` in an empty directory.
    pub fn identity(&self, name: &str) -> Result<Option<Identity>, DataDirError> {
        let Some(identity) = Identity::read(&self.disk, &self.path)? else {
            if self.disk.is_there(&self.database_path()) {
                return Err(DataDirError::NoIdentity(self.path.clone()));
            }
            return Ok(None);
        };
        if identity.name != name {
            return Err(DataDirError::OtherName {
                path: self.path.clone(),
                found: identity.name,
                wanted: name.to_owned(),
            });
        }
        Ok(Some(identity))
    }

    /// Write the node's identity durably. All other files must be written before, because this one makes the
    /// directory that of a node. The version of the layout never falls.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), DataDirError> {
        let _only = self.identity.lock();
        let present =
            Identity::read(&self.disk, &self.path).ok().flatten().map_or(0, |present| present.layout);
        Identity { layout: identity.layout.max(present), ..identity.clone() }.write(&self.disk, &self.path)
    }

    /// Note durably that the directory has a database of items. An older build refuses the directory from then on.
    pub fn note_items(&self) -> Result<(), DataDirError> {
        self.raise_layout(ITEMS_LAYOUT)
    }

    /// Note durably that the directory has stores of modules with several replicas. An older build refuses the directory
    /// from then on.
    pub fn note_replicas(&self) -> Result<(), DataDirError> {
        self.raise_layout(REPLICAS_LAYOUT)
    }

    /// Note durably that the directory has hints. An older build refuses the directory from then on.
    pub fn note_hints(&self) -> Result<(), DataDirError> {
        self.raise_layout(HINTS_LAYOUT)
    }

    fn raise_layout(&self, layout: u64) -> Result<(), DataDirError> {
        let _only = self.identity.lock();
        match Identity::read(&self.disk, &self.path)? {
            Some(identity) if identity.layout < layout => {
                Identity { layout, ..identity }.write(&self.disk, &self.path)
            }
            _ => Ok(()),
        }
    }

    /// Return the path of the database of items.
    pub fn items_path(&self) -> PathBuf {
        self.path.join("items")
    }

    /// Read the node's certificate, key and authorities.
    pub fn credentials(&self) -> Result<Credentials, DataDirError> {
        Credentials::read(&self.disk, &self.path)
    }

    /// Write the node's certificate, key and authorities durably.
    pub fn write_credentials(&self, credentials: &Credentials) -> Result<(), DataDirError> {
        credentials.write(&self.disk, &self.path)
    }

    /// Replace the authorities that the node trusts.
    pub fn write_authorities(&self, authorities: &[String]) -> Result<(), DataDirError> {
        Credentials::write_authorities(&self.disk, &self.path, authorities)
    }

    /// Read `admin.toml`; `None` if it is missing.
    pub fn admin(&self) -> Result<Option<AdminToml>, DataDirError> {
        AdminToml::read_on(&self.disk, &self.path)
    }

    /// Write `admin.toml`, for the command line.
    pub fn write_admin(&self, admin: &AdminToml) -> Result<(), DataDirError> {
        admin.write(&self.disk, &self.path)
    }

    /// Return the file of the authority's key.
    pub fn authority_file(&self) -> AuthorityFile {
        AuthorityFile::new(self.disk.clone(), self.path.clone())
    }

    /// Read the founding in progress, if any.
    pub fn founding(&self) -> Result<Option<Founding>, DataDirError> {
        Founding::read(&self.disk, &self.path)
    }

    /// Write the data of a founding durably, which starts the founding.
    pub fn write_founding(&self, founding: &Founding) -> Result<(), DataDirError> {
        founding.write(&self.disk, &self.path)
    }

    /// End the founding, because the new cluster exists.
    pub fn clear_founding(&self) -> Result<(), DataDirError> {
        files::remove(&self.disk, &self.path.join(FOUNDING))
    }

    /// Read the join in progress, if any.
    pub fn join_intent(&self) -> Result<Option<JoinIntent>, DataDirError> {
        JoinIntent::read(&self.disk, &self.path)
    }

    /// Write a join, or its next step, durably.
    pub fn write_join_intent(&self, intent: &JoinIntent) -> Result<(), DataDirError> {
        intent.write(&self.disk, &self.path)
    }

    /// End the join, which was abandoned before the node was admitted, or is complete.
    pub fn clear_join_intent(&self) -> Result<(), DataDirError> {
        files::remove(&self.disk, &self.path.join(JOIN))
    }

    /// Count this start durably, and return its number.
    pub fn count_start(&self) -> Result<u64, DataDirError> {
        starts::count(&self.disk, &self.path)
    }

    /// Open the record of modules without items that the former process left.
    pub fn empty_modules(&self) -> Result<EmptyModules, DataDirError> {
        EmptyModules::open(&self.disk, &self.path)
    }

    /// Read the record of the modules with several replicas of which the node has had an item.
    ///
    /// # Errors
    /// It cannot be read. Nothing was changed.
    pub fn replicated_modules(&self) -> Result<ReplicatedModules, DataDirError> {
        ReplicatedModules::open(&self.disk, &self.path)
    }

    /// Move everything in the directory into a new subdirectory, so that the next start is a new node's.
    /// Nothing is deleted. Return `None` if the directory is empty.
    pub fn set_aside(&self) -> Result<Option<PathBuf>, DataDirError> {
        aside::set_aside(&self.disk, &self.path)
    }

    /// Remove both databases: the control state of the cluster that the node leaves when it joins another, and all
    /// items.
    ///
    /// # Errors
    /// One of them is still open ([`Trouble::Locked`]), and nothing was changed; or a file cannot be removed.
    pub fn wipe_database(&self) -> Result<(), DataDirError> {
        let paths = [self.items_path(), self.database_path()];
        for path in paths.iter().filter(|path| self.disk.is_there(path)) {
            // The threads of an open engine write by path. They would write into the database that is created next.
            let opened = self.disk.engine(path, &EngineOptions::CONTROL).map(drop);
            if matches!(&opened, Err(DataDirError::Database { source: Trouble::Locked, .. })) {
                return opened;
            }
        }
        files::remove_marks(&self.disk, &self.path)?;
        for path in paths {
            match self.disk.remove_dir(&path) {
                Ok(()) => files::sync_dir(&self.disk, &self.path)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(DataDirError::Io { path, source }),
            }
        }
        Ok(())
    }
}

/// Generate an id for a new data directory.
pub fn new_uid() -> NodeUid {
    NodeUid(annulus_ground::random())
}
