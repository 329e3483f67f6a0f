//! The control plane: one Raft group that agrees on members, ring and modules (DESIGN.md D3).
//!
//! [`Cluster`] is a node's handle of it. The node's own copy of the committed state, the [`View`], serves every
//! request; a [`annulus_core::state::Command`] is proposed from any node and applied on all. Raft runs on the
//! runtime that calls [`Cluster::start`], which must be its own, so that guests never starve its heartbeats
//! (R18).
//!
//! ```text
//! propose ----> leader's Raft --log--> state machine ----> View (arc-swap, watch)
//!    ^               |                                        |
//!    |          claimant, on the leader: joining -> member, claim -> Rebalance,
//!    |          voters, leaving -> removed
//! service <---- transport, control lane: Raft, forwarded proposals, announcements
//! ```
//!
//! The parts, from the bottom up; a part holds only parts above it in this list:
//!
//! | part | task |
//! |---|---|
//! | `Views`, `AddressBook`, `Peers` | the committed state, addresses, calls to other nodes |
//! | `RaftGroup` | role, leader and voters, as the running Raft reports them |
//! | `Versions`, `JoinGate`, `Proposer` | proposals: level check, forwarding, retry |
//! | `Supervisor` | starts Raft, replaces it by another lineage's, stops it |
//! | `StateFetcher`, `Lineages` | newer states and lineages, from peers |
//! | `StartCheck`, `Participation` | evidence that this disk is the newest, before Raft takes part |
//! | `AddressExchange`, `Announcer` | addresses of nodes that have moved |
//! | `Claimant` | changes that the cluster makes by itself |
//! | `Admission`, `Changes`, `Recoverer` | operators' requests: joins, membership, recovery |
//! | [`Liveness`] | the failure detector's driver |
//!
//! The control plane ends in this order ([`Cluster::stop`]): its tasks are aborted, Raft is shut down, the
//! tasks are awaited.

mod address_exchange;
mod addresses;
mod announce;
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
pub use join::{Candidate, IssueError, JoinError, ask_to_join, authority};
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
