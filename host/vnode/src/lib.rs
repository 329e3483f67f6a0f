//! Vnodes: one replica of one partition of one module is one actor with one guest instance.
//!
//! [`Master`] knows which partitions this node holds, starts vnodes on demand and routes to
//! their mailboxes. An actor runs one command at a time and, between two commands, what moves
//! items: a handoff's pages, a swap to a new instance, the sweep of tombstones.

mod actor;
mod background;
mod guest;
mod loader;
mod mailbox;
mod master;
mod native;
mod native_kv;
mod room;
mod run;
mod slot;
mod turns;
mod watch;
mod weigh;

pub use guest::Behaviour;
pub use loader::{Loader, Loading, Prepared};
pub use mailbox::{
    Command, Control, Count, Outgoing, PageWanted, Reply, StreamEvent, SwapReport, Taken, VnodeHandle,
    decode_answer,
};
pub use master::{
    Delivery, Filled, IncompleteStage, Master, MasterConfig, ModuleSource, Reading, WeakMaster,
};
pub use native::{Answered, Call, NativeGuest, NativeModule, NativePlace};
pub use native_kv::native_kv;
pub use run::PageAnswer;
pub use slot::{Incident, SlotStatus, StageId};
pub use watch::{Ran, WatchedVnode, Watcher};
pub use weigh::Weight;
