//! The control plane: one Raft group that agrees on members, ring and modules (DESIGN.md D3).
//!
//! [`Cluster`] is a node's handle of it. The node's own copy of the committed state, the
//! [`View`], is what every request is served by; a change is a [`Command`] that is proposed from
//! any node and applied on all. Raft runs on the runtime that [`Cluster::start`] is called on,
//! which must be its own, so that guests never starve its heartbeats (R18).
//!
//! ```text
//! propose ----> leader's Raft --log--> state machine ----> View (arc-swap, watch)
//!    ^               |                                        |
//!    |          claimant, on the leader: joining -> member, claim -> Rebalance,
//!    |          voters, leaving -> removed
//! service <---- transport, control lane: Raft, forwarded proposals, announcements
//! ```

mod addresses;
mod announce;
mod change;
mod claimant;
mod contact;
mod fetch;
mod hold;
mod join;
mod lineage;
mod liveness;
mod meeting;
mod messages;
mod network;
mod outsider;
mod propose;
mod raft;
mod raft_runtime;
mod recover;
mod returned;
mod rivals;
mod service;
mod start;
mod starts;
pub mod storage;
mod token;
mod versions;
mod view;

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::state::{Change, Command, MemberStatus, Refusal};
use annulus_core::version::Speaks;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use addresses::AddressBook;
use annulus_transport::CallError;
use arc_swap::{ArcSwap, ArcSwapOption};
use contact::Contact;
use fetch::Fetches;
use lineage::{Heard, Running};
use meeting::Meeting;
use network::RaftLinks;
use raft::Raft;
use rivals::Rivals;
use starts::Starts;
use storage::RingCopy;
use view::Views;

pub use announce::Place;
pub use annulus_core::ids::Start;
pub use change::Changed;
pub use hold::JoinHold;
pub use join::{Candidate, JoinError, ask_to_join, authority};
pub use liveness::{Liveness, LivenessTable, Standing};
pub use network::ControlNetwork;
pub use propose::ProposeError;
pub use recover::{RecoverError, Recovered};
pub use service::turn_joiner_away;
pub use start::{ClusterConfig, ClusterError, seed};
pub use token::{Token, TokenError};
pub use view::View;

/// Why a node is no longer part of its cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It left, or was removed.
    #[error("this node was removed from the cluster")]
    Removed,
    /// Its disk is older than what its peers have seen of it.
    #[error(
        "this data directory is not the newest that this node had: {0}. It was restored from an older copy, or \
         runs twice; it may have forgotten a vote or an entry that it acknowledged, so it takes no part. \
         Nothing was changed. Start it from the newest directory, or say `annulus start --rejoin-as-new` to set \
         aside what is here and begin a new node (first `annulus remove` the old one, or `replace` it)"
    )]
    Stale(String),
    /// Its control plane cannot go on.
    #[error("the control plane failed: {0}")]
    Failed(String),
}

/// The deadline came first. The entry may be applied later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline exceeded while waiting for entry {index} of the cluster's log")]
pub struct DeadlineExceeded {
    /// What was waited for.
    pub index: u64,
}

/// The Raft group as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftMembers {
    /// Whose majority decides.
    pub voters: Vec<NodeId>,
    /// Who only hears what was decided.
    pub learners: Vec<NodeId>,
    /// A change of voters is under way: majorities of the old and of the new ones decide.
    pub changing: bool,
}

/// A node's handle of the control plane. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    uid: NodeUid,
    speaks: Speaks,
    views: Arc<Views>,
    book: Arc<AddressBook>,
    meeting: Meeting,
    contact: Arc<Contact>,
    liveness: Liveness,
    network: Arc<dyn ControlNetwork>,
    database: annulus_data_dir::Store,
    copy: RingCopy,
    beside: std::path::PathBuf,
    starts: Starts,
    /// False until peers were asked whether this disk is this node's newest.
    takes_part: watch::Sender<bool>,
    /// The last entry that was known to be committed when this node started, where its log lacked it.
    needs: ArcSwapOption<(annulus_core::state::Lineage, raft::LogId)>,
    /// Replaced whole when the node goes over to another lineage.
    running: ArcSwap<Running>,
    /// Held by who does that.
    turn: tokio::sync::Mutex<()>,
    heard: watch::Sender<Heard>,
    /// Peers of older lineages that are being told of this one.
    told: parking_lot::Mutex<std::collections::BTreeMap<NodeUid, annulus_core::state::Lineage>>,
    rivals: Rivals,
    growth: hold::Growth,
    fetches: Fetches,
    runtime: Handle,
    ended: watch::Sender<Option<Ended>>,
    tasks: parking_lot::Mutex<Vec<JoinHandle<()>>>,
}

impl Inner {
    /// The way of a lineage's Raft to its peers.
    fn links(&self, lineage: annulus_core::state::Lineage) -> RaftLinks {
        let (network, book, contact) = (self.network.clone(), self.book.clone(), self.contact.clone());
        RaftLinks { network, book, contact, lineage }
    }
}

impl Cluster {
    /// This node.
    pub fn me(&self) -> NodeId {
        self.inner.me
    }

    /// This node's data directory.
    pub fn uid(&self) -> NodeUid {
        self.inner.uid
    }

    /// The committed state as this node knows it: cheap enough for every request.
    pub fn view(&self) -> Arc<View> {
        self.inner.views.load()
    }

    /// Tells whether anybody still has this: for whoever looks for leaks.
    pub fn remains(&self) -> Weak<dyn Any + Send + Sync> {
        let held: Arc<dyn Any + Send + Sync> = self.inner.clone();
        Arc::downgrade(&held)
    }

    /// Changes after each applied batch.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.inner.views.subscribe()
    }

    /// Keeps the present view on this node's disk, in order before whatever is written to the
    /// same database after it: what a node forgets on the strength of a view it must not outlive.
    pub fn keep_view(&self) {
        self.inner.copy.write(&self.view().state);
    }

    /// Waits until this node's view has the entry of an index.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<Arc<View>, DeadlineExceeded> {
        let mut views = self.watch();
        let waited = timeout_at(deadline, views.wait_for(|view| view.index() >= index)).await;
        match waited {
            Ok(Ok(view)) => Ok(view.clone()),
            _ => Err(DeadlineExceeded { index }),
        }
    }

    /// Who is up, as far as this node knows: for choosing fallbacks and for showing. It decides
    /// nothing about who owns what.
    pub fn liveness(&self) -> &Liveness {
        &self.inner.liveness
    }

    /// Whom this node takes for the leader. May be out of date.
    pub fn leader(&self) -> Option<NodeId> {
        self.raft().metrics().borrow().current_leader.map(NodeId)
    }

    /// Has this node been led by, or led itself, a majority within this time (R1)?
    pub fn heard_from_leader_within(&self, limit: Duration) -> bool {
        if self.leads() { self.has_quorum(limit) } else { self.inner.contact.leader_within(limit) }
    }

    /// Takes a newer state from a peer that said that it has one (R2), and waits for it.
    pub fn learn_from(
        &self,
        peer: NodeId,
        index: u64,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Arc<View>, DeadlineExceeded>> {
        Box::pin(async move {
            tokio::select! {
                // Raft may bring it first.
                biased;
                applied = self.wait_applied(index, deadline) => applied,
                () = self.fetch_state_once(peer, deadline) => self.wait_applied(index, deadline).await,
            }
        })
    }

    /// Takes a newer state from the leader, if it has one and can be reached in time.
    pub fn learn_news(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(leader) = self.leader().filter(|leader| *leader != self.me()) {
                self.fetch_state_once(leader, deadline).await;
            }
        })
    }

    /// Makes a token that lets a node join, good for `lifetime`.
    pub fn issue_token(
        &self,
        lifetime: Duration,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Token, IssueError>> {
        Box::pin(async move {
            let view = self.view();
            let token =
                Token::generate(view.state.cluster, view.state.authorities.last().map_or("", |pem| pem))?;
            let now_ms = token::now_ms();
            let expires_ms = now_ms.saturating_add(lifetime.as_millis() as u64);
            self.propose(Command::IssueToken { token: token.digest(), now_ms, expires_ms }, deadline).await?;
            Ok(token)
        })
    }

    /// Starts the leave of a node (this one if `None`): it hands off what it holds, then ends.
    pub fn leave<'a>(
        &'a self,
        name: Option<&'a str>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<NodeId, ProposeError>> {
        Box::pin(async move {
            let node = match name {
                None => self.me(),
                Some(name) => {
                    let view = self.view();
                    let unknown = || Refusal::NotMember(name.to_owned());
                    view.state.member_by_name(name).ok_or_else(unknown)?.id
                }
            };
            // One that is not in yet holds nothing to hand off.
            if self.view().member(node).is_some_and(|member| member.status == MemberStatus::Joining) {
                return self.change(Change::Leave { node }, deadline).await.map(|_| node);
            }
            let mut said = false;
            loop {
                match self.propose(Command::Leave { node }, deadline).await {
                    // Said twice it is the same leave; a leader that ends, its own leave done, may take
                    // one with it.
                    Err(ProposeError::Unknown) if Instant::now() < deadline => said = true,
                    // It has left meanwhile.
                    Err(ProposeError::Refused(Refusal::NotMember(_))) if said => return Ok(node),
                    answer => return answer.map(|_| node),
                }
            }
        })
    }

    /// Nodes of another history of this cluster that were met within the last minute: one side removed the
    /// other, which was recovered. Both serve.
    pub fn rivals(&self) -> Vec<NodeUid> {
        self.inner.rivals.met()
    }

    /// Set when this node is no longer part of the cluster.
    pub fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.inner.ended.subscribe()
    }

    /// Who votes and who only learns, for `status`.
    pub fn raft_members(&self) -> RaftMembers {
        let metrics = self.raft().metrics();
        let stored = metrics.borrow().membership_config.clone();
        let membership = stored.membership();
        RaftMembers {
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            changing: membership.get_joint_config().len() > 1,
        }
    }

    /// Stops taking part. What is committed is on disk already.
    pub fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let tasks = std::mem::take(&mut *self.inner.tasks.lock());
            tasks.iter().for_each(JoinHandle::abort);
            // An error says that it stopped earlier.
            let running = self.inner.running.load_full();
            running.watch.abort();
            let _ = running.raft.shutdown().await;
            for task in tasks {
                let _ = task.await;
            }
        })
    }

    fn raft(&self) -> Raft {
        self.inner.running.load().raft.clone()
    }

    fn growth(&self) -> &hold::Growth {
        &self.inner.growth
    }

    fn contact(&self) -> &Contact {
        &self.inner.contact
    }

    async fn call(
        &self,
        node: NodeId,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let peer = self
            .inner
            .book
            .peer(node)
            .ok_or_else(|| CallError::Unreachable(format!("no address of node {node} is known")))?;
        self.inner.network.call(peer, kind, payload, deadline).await
    }

    fn end(&self, why: Ended) {
        end(&self.inner.ended, why);
    }
}

/// The first reason counts.
fn end(ended: &watch::Sender<Option<Ended>>, why: Ended) {
    ended.send_if_modified(|ended| {
        let first = ended.is_none();
        if first {
            *ended = Some(why);
        }
        first
    });
}

/// Why there is no token. None was issued, or (unknown outcome) one that nobody has.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The cluster did not agree.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The authority's certificate is damaged.
    #[error(transparent)]
    Authority(#[from] annulus_transport::identity::IdentityError),
}

#[cfg(test)]
mod tests;
