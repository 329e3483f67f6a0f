//! Vnodes: one replica of one partition of one module is one actor with one guest instance.
//!
//! [`Master`] knows which partitions this node holds, starts vnodes on demand and routes to
//! their mailboxes. An actor runs one command at a time and, between two commands, what moves
//! items: a handoff's pages, a swap to a new instance, the sweep of tombstones.

mod actor;
mod background;
mod guest;
mod mailbox;
mod master;
mod native;
mod room;
mod run;
mod slot;
mod turns;
mod weigh;

pub use guest::Behaviour;
pub use mailbox::{
    Command, Control, Count, Outgoing, PageWanted, Reply, StreamEvent, SwapReport, Taken, VnodeHandle,
    decode_answer,
};
pub use master::{Delivery, IncompleteStage, Master, MasterConfig, ModuleSource, Reading, WeakMaster};
pub use native::native_kv;
pub use run::PageAnswer;
pub use slot::{Incident, SlotStatus, StageId};
pub use weigh::Weight;
