//! A node's data directory: who it is, its credentials and its one database.
//!
//! ```text
//! LOCK             held while a process runs here
//! IDENTITY         layout version, name, cluster, lineage, uid, node id; checksummed
//! node.pem .key    the certificate that peers know the node by, and its key
//! authorities.pem  whose certificates the node believes
//! FOUNDING         only until the cluster of one exists: the authority that founds it
//! JOIN             only while a join is under way: what is wanted, then what was answered
//! admin.toml       how the command line reaches this node
//! STARTS-a -b      how often the node has started
//! empty/           modules that have had no item in memory since the last start
//! *.mark           what Raft has promised: a second witness beside the database
//! db/              the database: the control plane's log, the ring, the modules' items
//! set-aside-1/     all of the above, of a node that was here before `--rejoin-as-new`
//! ```
//!
//! The directory is believed only as a whole: what is missing or damaged is an error that names
//! the file, never a default. A file is replaced by writing a new one beside it, so a crash
//! leaves the old or the new one. A node without `IDENTITY` is a new node (R18).

mod admin_toml;
mod aside;
mod database;
mod disk;
mod empty;
mod files;
mod founding;
mod identity;
mod join_intent;
mod obstacle;
mod private;
mod sealed;
mod starts;
mod store;

use std::fs::TryLockError;
use std::path::{Path, PathBuf};

use annulus_core::ids::NodeUid;

pub use admin_toml::AdminToml;
pub use database::{fatal, open_database};
pub use disk::{Access, Disk, Entry, Files, Handle, Lock, Open};
pub use empty::EmptyModules;
pub use founding::Founding;
pub use identity::{Credentials, Identity, LAYOUT_VERSION};
pub use join_intent::{Admitted, JoinIntent};
pub use obstacle::{RESTORE, database_trouble, obstacle};
pub use private::{keep_files_private, make_private};
pub use store::{Batch, Engine, Op, Space, SpaceId, Store, Trouble};

/// Held by the process that runs here.
const LOCK: &str = "LOCK";

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process runs on it.
    #[error("{0} is in use by another annulus process")]
    Locked(PathBuf),
    /// It was written by another version of annulus.
    #[error("{path} has layout version {found}, this annulus reads version {LAYOUT_VERSION}")]
    OtherVersion {
        /// The `IDENTITY` file.
        path: PathBuf,
        /// What it says.
        found: u64,
    },
    /// It belongs to another user of the machine.
    #[error(
        "{path} belongs to user {owner}, and a node keeps its keys there; start it as that user, or give the \
         directory to this one (chown)"
    )]
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
    },
    /// It belongs to a node of another name.
    #[error("{path} belongs to node {found}, not to {wanted}; start with --name {found} or another --data")]
    OtherName {
        /// The directory.
        path: PathBuf,
        /// The name in it.
        found: String,
        /// The name that was asked for.
        wanted: String,
    },
    /// A file in it is damaged.
    #[error("{path} is corrupt: {reason}. {}", way_out(path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that must be there is not.
    #[error("{path} is missing. {way}", path = .0.display(), way = way_out(.0))]
    Missing(PathBuf),
    /// It holds files but no `IDENTITY`, so it is not a node's, or what made it a node's is lost.
    #[error("{path} has a database but no IDENTITY. {way}", path = .0.display(), way = way_out(.0))]
    NoIdentity(PathBuf),
    /// The file system refused.
    #[error("{path}: {source}{}", may_be(source))]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The database in it cannot be opened.
    #[error("the database {path} cannot be opened: {}", database_trouble(source, RESTORE))]
    Database {
        /// The database's directory.
        path: PathBuf,
        /// Why not.
        source: Trouble,
    },
}

/// What can be done about a refusal, if that is known.
fn may_be(source: &std::io::Error) -> String {
    obstacle(source).map(|way| format!(". {way}")).unwrap_or_default()
}

/// What can be done about a damaged file.
fn way_out(path: &Path) -> &'static str {
    if path.file_name().is_some_and(|name| name == join_intent::FILE) {
        // The cluster answers the same directory the same again.
        return "It says of a join how far it had come: remove it, start, and say `join` again";
    }
    "Nothing was changed. Put the file back if you have it as it was when the node stopped (an older copy will \
     not do), or say `annulus start --rejoin-as-new`, which sets aside all that is here and begins a new node"
}

/// A locked data directory. Dropping it releases the lock.
#[derive(Debug)]
pub struct DataDir {
    disk: Disk,
    path: PathBuf,
    _lock: Lock,
}

impl DataDir {
    /// Makes the directory if need be and locks it.
    pub fn lock(path: &Path) -> Result<Self, DataDirError> {
        Self::lock_on(&Disk::real(), path)
    }

    /// The same on a disk of choice.
    pub fn lock_on(disk: &Disk, path: &Path) -> Result<Self, DataDirError> {
        files::create_private_dir(disk, path)?;
        let lock_path = path.join(LOCK);
        match disk.lock(&lock_path) {
            Ok(lock) => Ok(Self { disk: disk.clone(), path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(DataDirError::Io { path: lock_path, source }),
        }
    }

    /// The disk that it lies on.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Opens the database in it, or makes it.
    pub fn database(&self) -> Result<Store, DataDirError> {
        self.disk.database(&self.database_path())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the database is.
    pub fn database_path(&self) -> PathBuf {
        self.path.join("db")
    }

    /// Who lives here: `None` in an empty directory.
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

    /// Makes the node's identity durable. What stands beside it must be written before: this
    /// file is what makes the directory a node's.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), DataDirError> {
        identity.write(&self.disk, &self.path)
    }

    /// The node's certificate, key and authorities.
    pub fn credentials(&self) -> Result<Credentials, DataDirError> {
        Credentials::read(&self.disk, &self.path)
    }

    /// Makes the node's certificate, key and authorities durable.
    pub fn write_credentials(&self, credentials: &Credentials) -> Result<(), DataDirError> {
        credentials.write(&self.disk, &self.path)
    }

    /// Replaces the authorities that the node believes.
    pub fn write_authorities(&self, authorities: &[String]) -> Result<(), DataDirError> {
        Credentials::write_authorities(&self.disk, &self.path, authorities)
    }

    /// How the command line reaches this node, if that was told.
    pub fn admin(&self) -> Result<Option<AdminToml>, DataDirError> {
        AdminToml::read_on(&self.disk, &self.path)
    }

    /// Tells the command line how to reach this node.
    pub fn write_admin(&self, admin: &AdminToml) -> Result<(), DataDirError> {
        admin.write(&self.disk, &self.path)
    }

    /// The founding that is under way, if one is.
    pub fn founding(&self) -> Result<Option<Founding>, DataDirError> {
        Founding::read(&self.disk, &self.path)
    }

    /// Begins a founding.
    pub fn write_founding(&self, founding: &Founding) -> Result<(), DataDirError> {
        founding.write(&self.disk, &self.path)
    }

    /// The cluster of one exists.
    pub fn clear_founding(&self) -> Result<(), DataDirError> {
        files::remove(&self.disk, &self.path.join(founding::FILE))
    }

    /// The join that is under way, if one is.
    pub fn join_intent(&self) -> Result<Option<JoinIntent>, DataDirError> {
        JoinIntent::read(&self.disk, &self.path)
    }

    /// Makes a join, or its next step, durable.
    pub fn write_join_intent(&self, intent: &JoinIntent) -> Result<(), DataDirError> {
        intent.write(&self.disk, &self.path)
    }

    /// The join was given up before it was admitted, or is complete.
    pub fn clear_join_intent(&self) -> Result<(), DataDirError> {
        files::remove(&self.disk, &self.path.join(join_intent::FILE))
    }

    /// Counts this start, durably; answers the how manieth it is.
    pub fn count_start(&self) -> Result<u64, DataDirError> {
        starts::count(&self.disk, &self.path)
    }

    /// Which modules had no item here, as the process before left it.
    pub fn empty_modules(&self) -> Result<EmptyModules, DataDirError> {
        EmptyModules::open(&self.disk, &self.path)
    }

    /// Sets all that is in the directory aside, under a name of its own in it: the next start is
    /// that of a new node. Nothing is deleted. `None` if there is nothing.
    pub fn set_aside(&self) -> Result<Option<PathBuf>, DataDirError> {
        aside::set_aside(&self.disk, &self.path)
    }

    /// Removes the database whole: the control state of the cluster that the node leaves behind
    /// when it joins another, and all items.
    pub fn wipe_database(&self) -> Result<(), DataDirError> {
        files::remove_marks(&self.disk, &self.path)?;
        let path = self.database_path();
        match self.disk.remove_dir(&path) {
            Ok(()) => files::sync_dir(&self.disk, &self.path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(DataDirError::Io { path, source }),
        }
    }
}

/// A uid for a new data directory.
pub fn new_uid() -> NodeUid {
    NodeUid(annulus_ground::random())
}

#[cfg(test)]
mod tests;
