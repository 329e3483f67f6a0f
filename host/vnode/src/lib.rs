//! Vnodes: one replica of one partition of one module is one actor with one guest instance.
//!
//! [`Master`] knows the partitions that this node owns, starts vnodes on demand and routes commands to their
//! mailboxes. An actor runs one command at a time. Between two commands it moves items: pages of a handoff, a
//! swap to a new instance, the sweep of tombstones.

mod actor;
mod component;
mod control;
mod coverage_limit;
mod guest;
mod incidents;
mod loader;
mod mailbox;
mod master;
mod measure;
mod memory;
mod moves;
mod native_kv;
mod outgoing;
mod parked;
mod release;
mod runtime;
mod slot;
mod source;
mod watch;

pub use control::{Answer, Control, Count, KeyState, SwapReport, Taken};
pub use incidents::Incident;
pub use loader::{Loader, Loading, Prepared};
pub use mailbox::{Command, CoveragePage, Executed, RemoteCaller, ReplicatedCaller, Reply, VnodeHandle};
pub use master::handoff::{IncompleteStage, Reading};
pub use master::replica::{NoReplica, ReplicaId, ReplicaStore};
pub use master::{Delivery, Master, MasterConfig, WeakMaster};
pub use measure::PartitionSize;
pub use native_kv::native_kv;
pub use outgoing::{Outgoing, StreamEvent};
pub use release::Release;
pub use runtime::{CommandResult, GuestCall, InstanceConfig, Program, Runtime};
pub use slot::{SlotStatus, StageId};
pub use source::{Filled, ModuleSource};
pub use watch::{Ran, WatchedVnode, Watcher};
