//! The control plane: one Raft group that replicates the members, the ring and the modules (DESIGN.md D3).
//!
//! [`Cluster`] is a node's handle to the control plane. Every request reads the node's own copy of the committed
//! state, the [`View`]. Any node can propose a [`annulus_core::state::Command`], which all nodes then apply. Raft
//! runs on the runtime that calls [`Cluster::start`]. Dedicate a runtime to it, so that guests never delay its
//! heartbeats (R18).
//!
//! ```text
//! propose ----> leader's Raft --log--> state machine ----> View (arc-swap, watch)
//!    ^               |                                        |
//!    |          claimant, on the leader: joining -> member, claim -> Rebalance,
//!    |          voters, leaving -> removed
//! service <---- transport, control lane: Raft, forwarded proposals, announcements
//! ```
//!
//! The components, lowest layer first. Each one holds references only to components listed above it:
//!
//! | component | task |
//! |---|---|
//! | `Views`, `AddressBook`, `Peers` | hold the committed state and the addresses; call other nodes |
//! | `RaftGroup` | reports role, leader and voters of the running Raft |
//! | `Versions`, `JoinGate`, `Proposer` | check the level of proposals, forward and retry them |
//! | `Supervisor` | starts and stops Raft, and replaces it when the lineage changes |
//! | `StateFetcher`, `Lineages` | fetch newer states and lineages from peers |
//! | `StartCheck`, `Participation` | establish that this disk is the newest before Raft takes part |
//! | `AddressExchange`, `Announcer` | spread the addresses of nodes that have moved |
//! | `Claimant` | proposes the changes that need no operator |
//! | `Admission`, `Changes`, `Recoverer` | carry out operators' requests: joins, membership changes, recovery |
//! | [`Liveness`] | drives the failure detector |
//!
//! [`Cluster::stop`] shuts the control plane down in this order: it aborts the tasks, shuts Raft down, and then
//! awaits the tasks.

mod address_exchange;
mod addresses;
mod announce;
mod authority;
mod change;
mod claimant;
mod cluster;
mod contact;
mod encoded;
mod ended;
mod evidence;
mod fetch;
mod gate;
mod group;
mod hold;
mod join;
mod lineage;
mod liveness;
mod messages;
mod network;
mod outsider;
mod participation;
mod peers;
mod propose;
mod raft;
mod raft_runtime;
mod recover;
mod returned;
mod rivals;
mod seen_starts;
mod service;
mod start;
mod start_check;
pub mod storage;
mod supervisor;
mod tasks;
mod token;
mod versions;
mod view;

pub use announce::Place;
pub use annulus_core::ids::Start;
pub use change::Changed;
pub use cluster::Cluster;
pub use ended::Ended;
pub use group::RaftMembers;
pub use hold::JoinHold;
pub use join::{Candidate, IssueError, IssuedToken, JoinError, ask_to_join};
pub use liveness::{Liveness, LivenessStatus, LivenessTable};
pub use network::ControlNetwork;
pub use propose::ProposeError;
pub use recover::{RecoverError, Recovered};
pub use service::turn_joiner_away;
pub use start::{ClusterConfig, seed};
pub use supervisor::ClusterError;
pub use token::{Token, TokenError};
pub use view::{DeadlineExceeded, View};

#[cfg(test)]
mod tests;
