//! A node's data directory: its identity, its credentials and its databases.
//!
//! ```text
//! LOCK             held while a process runs here
//! IDENTITY         layout version, name, cluster, lineage, uid, node id; checksummed
//! node.pem .key    the certificate by which peers know the node, and its key
//! authorities.pem  authorities that the node trusts
//! authority.key    on voters: the private key of the cluster's authority
//! FOUNDING         until the new cluster exists: the authority that founds it
//! JOIN             while a join is in progress: the request, then the reply
//! admin.toml       address and credentials with which the command line reaches this node
//! STARTS-a -b      number of the node's starts
//! empty/           modules without an item in memory since the last start
//! replicated/      modules with several replicas of which the node has had an item
//! *.mark           Raft's promises, and those of the items: a second record beside each database
//! db/              the database of the control plane: the log, the ring
//! items/           the database of the modules' durable items
//! items.bad        the reason why the items are set aside at the next start
//! items.suspect    has the next start read all items, because a commit failed
//! items.creating   exists while the database of items is created
//! items-set-aside-1/   items that were damaged
//! set-aside-1/     all of the above, of a node that was here before `--rejoin-as-new`
//! ```
//!
//! The directory is trusted only as a whole: a missing or damaged file is an error that names it, never a
//! default. A file is replaced by writing a new one beside it and renaming, so that a crash leaves the old or
//! the new one. A directory without `IDENTITY` is a new node's (R18).
//!
//! All access is through [`Disk`] and [`Engine`], of the system or of a simulation.

mod admin_toml;
mod aside;
mod authority_file;
mod data_dir;
mod database;
mod disk;
mod empty;
mod engine;
mod error;
mod files;
mod founding;
mod identity;
mod join_intent;
mod layout;
mod obstacle;
mod private;
mod real;
mod replicated;
mod sealed;
mod starts;
mod store;

pub use admin_toml::AdminToml;
pub use authority_file::{AuthorityFile, AuthorityKey};
pub use data_dir::{DataDir, new_uid};
pub use database::fatal;
pub use disk::{Access, Disk, Entry, Files, Handle, Lock, Open};
pub use empty::EmptyModules;
pub use engine::{Engine, EngineOptions, Op, ReadLimit, SpaceId, Trouble, collect_within};
pub use error::DataDirError;
pub use founding::Founding;
pub use identity::{Credentials, Identity};
pub use join_intent::{Admitted, JoinIntent};
pub use layout::{HINTS_LAYOUT, ITEMS_LAYOUT, LAYOUT_VERSION, REPLICAS_LAYOUT};
pub use obstacle::{RESTORE, database_trouble, is_damage, obstacle};
pub use private::{keep_files_private, make_private};
pub use real::open_database;
pub use replicated::ReplicatedModules;
pub use store::{Batch, Space, Store};

#[cfg(test)]
mod tests;
