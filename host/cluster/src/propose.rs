//! Changes of the cluster's state from any node. The command is sent to the leader.
//!
//! The outcome of a failure matters most. As long as no Raft log has accepted the command, it is surely not
//! applied and may be sent to another node. From then on a missing reply is `Unknown`, and only the state
//! shows the outcome.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::codec;
use annulus_core::ids::NodeId;
use annulus_core::state::{Command, Outcome, Refusal};
use annulus_transport::{CallError, kind};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::gate::{JoinGate, Shut};
use super::group::RaftGroup;
use super::messages::ProposeReply;
use super::peers::Peers;
use super::token::now_ms;
use super::versions::Versions;
use super::view::Views;

/// A leader that a majority has followed within this time assumes that it still leads.
const FRESH_QUORUM: Duration = Duration::from_secs(1);

/// Longest wait of a leader for a majority before it refuses a command.
const QUORUM_WAIT: Duration = Duration::from_secs(1);

/// Pause between two searches for a leader, unless one appears earlier.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// Time without a reply from a majority of the voters after which a proposal no longer waits for a leader.
/// Longer than a paused or restarted peer needs to come back.
const NO_MAJORITY: Duration = Duration::from_millis(1500);

/// Longest command, in bytes. An entry must fit one frame of the transport with room to spare: an entry that
/// cannot be replicated stops the log for good.
const MAX_COMMAND_BYTES: usize = 1 << 20;

/// Number of hints that are followed without a pause: two nodes may point at each other for a moment.
const MAX_HOPS: u32 = 4;

/// The reason for which a command has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader was found before the deadline. Not applied.
    #[error("the cluster has no leader at the moment; nothing was changed")]
    NoLeader,
    /// The leader has no majority of voters. Not applied.
    #[error("no majority of the cluster's voters can be reached; nothing was changed")]
    NoQuorum,
    /// The node waits for another cluster's answer to its join, which would wipe the change. Not applied.
    #[error(
        "this node is asking {0} to let it join, which would wipe this change; nothing was changed. Try again \
         when the join has ended"
    )]
    Joining(std::net::SocketAddr),
    /// This node is not a member of a newer lineage of the cluster, and may not propose. Not applied.
    #[error(
        "the cluster was recovered without this node, which is no longer a member of it; nothing was changed. \
         Ask a member; `annulus status` on this node says what can be done with it"
    )]
    Outside,
    /// The command was refused when it was applied, or before. It changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A node accepted the command and did not reply. The command may be applied, now or later.
    #[error(
        "the change was proposed, and the answer was lost or late: it is not known whether the change was made"
    )]
    Unknown,
}

/// The result of sending a command to one node.
enum Attempt {
    Applied(u64, Outcome),
    /// The command was not applied. The node may know the leader.
    NotLeader(Option<NodeId>),
    /// Nothing was sent, because the node cannot be reached.
    Silent,
    NoQuorum,
    Unknown,
}

/// Proposes commands: on this node if it leads, otherwise through the leader.
pub(super) struct Proposer {
    me: NodeId,
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    peers: Peers,
    versions: Arc<Versions>,
    gate: Arc<JoinGate>,
}

impl Proposer {
    pub(super) fn new(
        me: NodeId,
        views: Arc<Views>,
        group: Arc<RaftGroup>,
        peers: Peers,
        versions: Arc<Versions>,
    ) -> Self {
        Self { me, views, group, peers, versions, gate: Arc::default() }
    }

    pub(super) fn views(&self) -> &Arc<Views> {
        &self.views
    }

    pub(super) fn gate(&self) -> &Arc<JoinGate> {
        &self.gate
    }

    /// Change the cluster's state, and return the entry's index with its outcome. On the leader the entry
    /// is applied by then; elsewhere [`Views::wait_applied`] waits for it.
    pub(super) fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<(u64, Outcome), ProposeError>> {
        Box::pin(async move {
            self.versions.check_level(&command)?;
            if self.views.load().outside.is_some() {
                return Err(ProposeError::Outside);
            }
            let _passed = self.gate.enter(&command, deadline).await?;
            annulus_ground::point("proposals: may be made").await;
            let mut failure = ProposeError::NoLeader;
            let (mut hint, mut hops) = (None, 0);
            let mut majority_seen = Instant::now();
            loop {
                let (mut asked, mut heard) = (BTreeSet::new(), BTreeSet::new());
                for node in self.candidates(hint.take()) {
                    if Instant::now() >= deadline {
                        return Err(failure);
                    }
                    asked.insert(node);
                    let attempt = self.attempt(node, &command, deadline).await;
                    if !matches!(attempt, Attempt::Silent) {
                        heard.insert(node.0);
                    }
                    match attempt {
                        Attempt::Applied(_, Outcome::Refused(refusal)) => return Err(refusal.into()),
                        Attempt::Applied(index, outcome) => return Ok((index, outcome)),
                        Attempt::Unknown => return Err(ProposeError::Unknown),
                        Attempt::NoQuorum => failure = ProposeError::NoQuorum,
                        // Skip a node that this round has asked in vain, because its successor may follow in
                        // the list.
                        Attempt::NotLeader(Some(leader)) if !asked.contains(&leader) => {
                            hint = Some(leader);
                            break;
                        }
                        Attempt::NotLeader(_) | Attempt::Silent => {}
                    }
                }
                hops += 1;
                if hint.is_some() && hops % MAX_HOPS != 0 {
                    continue;
                }
                if hint.is_some() || self.group.is_majority(&heard) {
                    majority_seen = Instant::now();
                } else if majority_seen.elapsed() >= NO_MAJORITY {
                    return Err(ProposeError::NoQuorum);
                }
                let mut metrics = self.group.raft().server_metrics();
                metrics.mark_unchanged();
                let pause = (Instant::now() + ROUND_PAUSE).min(deadline);
                match timeout_at(pause, metrics.changed()).await {
                    Ok(Ok(())) => continue,
                    // This node's Raft has ended and no longer reports a leader.
                    Ok(Err(_)) => sleep_until(pause).await,
                    Err(_) => {}
                }
                if pause == deadline {
                    return Err(failure);
                }
            }
        })
    }

    /// Return the nodes to ask, in order: the hint, the leader that this node knows, all members.
    fn candidates(&self, hint: Option<NodeId>) -> Vec<NodeId> {
        let view = self.views.load();
        // A removed leader leads until it ends, but nothing that it accepts is committed.
        let lives = |node: &NodeId| view.state.live_members().any(|member| member.id == *node);
        let leader = self.group.leader().filter(lives);
        let mut order: Vec<NodeId> = hint.into_iter().chain(leader).collect();
        order.extend(view.state.live_members().map(|member| member.id));
        let mut seen = BTreeSet::new();
        order.retain(|node| seen.insert(*node));
        order
    }

    async fn attempt(&self, node: NodeId, command: &Command, deadline: Instant) -> Attempt {
        if node == self.me {
            return match self.propose_here(command.clone(), deadline).await {
                ProposeReply::Applied { index, outcome } => Attempt::Applied(index, outcome),
                ProposeReply::NotLeader { leader } => Attempt::NotLeader(leader),
                ProposeReply::NoQuorum => Attempt::NoQuorum,
                ProposeReply::Unknown => Attempt::Unknown,
            };
        }
        let Ok(payload) = codec::encode(command) else { return Attempt::Unknown };
        match self.peers.call(node, kind::PROPOSE, Bytes::from(payload), deadline).await {
            Ok(answer) => match codec::decode(&answer) {
                Ok(ProposeReply::Applied { index, outcome }) => Attempt::Applied(index, outcome),
                Ok(ProposeReply::NotLeader { leader }) => Attempt::NotLeader(leader),
                Ok(ProposeReply::NoQuorum) => Attempt::NoQuorum,
                Ok(ProposeReply::Unknown) | Err(_) => Attempt::Unknown,
            },
            Err(CallError::Unreachable(_) | CallError::Deadline { sent: false }) => Attempt::Silent,
            Err(CallError::Overloaded | CallError::TooLarge { .. }) => Attempt::NotLeader(None),
            Err(CallError::Lost(_) | CallError::NoAnswer | CallError::Deadline { sent: true }) => {
                Attempt::Unknown
            }
        }
    }

    /// Append a command to the log if this node leads.
    pub(super) async fn propose_here(&self, command: Command, deadline: Instant) -> ProposeReply {
        if !self.group.leads() {
            return ProposeReply::NotLeader {
                leader: self.group.leader().filter(|leader| *leader != self.me),
            };
        }
        // No node follows this one any longer, so the command would be neither committed nor refused.
        let view = self.views.load();
        if view.is_removed() || view.outside.is_some() {
            return ProposeReply::NotLeader { leader: None };
        }
        // Not every member could read a command above the level in use, so it must not enter the log.
        if let Err(refusal) = self.versions.check_level(&command) {
            return ProposeReply::Applied {
                index: self.views.load().index(),
                outcome: Outcome::Refused(refusal),
            };
        }
        let refused = match codec::encode(&command) {
            Ok(bytes) if bytes.len() <= MAX_COMMAND_BYTES => None,
            Ok(bytes) => Some(format!("{} bytes; the limit of a change is {MAX_COMMAND_BYTES}", bytes.len())),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = refused {
            return ProposeReply::Applied {
                index: view.index(),
                outcome: Outcome::Refused(Refusal::BadSetting(why)),
            };
        }
        let command = command.by_clock(now_ms());
        // Anybody who has had a token can ask again with it, so that a spent one must not reach the log.
        if let Command::Admit { member, token, now_ms } = &command
            && view.state.is_spent(token, *now_ms)
            && view.state.member_by_uid(member.uid).is_none()
        {
            return ProposeReply::Applied {
                index: view.index(),
                outcome: Outcome::Refused(Refusal::BadToken),
            };
        }
        // Wait for half of the remaining time, so that the refusal arrives before the caller's deadline.
        let now = Instant::now();
        let patience = QUORUM_WAIT.min(deadline.saturating_duration_since(now) / 2);
        if !self.group.wait_for_quorum(FRESH_QUORUM, now + patience).await {
            return ProposeReply::NoQuorum;
        }
        annulus_ground::point("proposals: the leader takes one").await;
        match timeout_at(deadline, self.group.raft().client_write(command)).await {
            Ok(Ok(response)) => match response.data {
                Some(outcome) => ProposeReply::Applied { index: response.log_id.index, outcome },
                None => ProposeReply::Unknown,
            },
            // The outcome is unknown even after "forward to leader". openraft also returns that error for
            // entries of its log that another leader's entries have replaced, and the replaced ones may
            // survive in a third log.
            Ok(Err(_)) | Err(_) => ProposeReply::Unknown,
        }
    }
}

impl From<Shut> for ProposeError {
    fn from(shut: Shut) -> Self {
        match shut {
            Shut::Joining(member) => Self::Joining(member),
            Shut::Deadline => Self::NoLeader,
        }
    }
}
