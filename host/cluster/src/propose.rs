//! Changing the cluster's state from any node: the command goes to whoever leads.
//!
//! What matters is what is said when it fails. As long as nothing was handed to a Raft log the
//! command is surely not applied and may go to another node; from then on a missing answer is
//! `Unknown`, and only the state tells.

use std::collections::BTreeSet;
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::state::{Command, Outcome, Refusal};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::ServerState;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Cluster;
use super::messages::ProposeReply;
use annulus_core::codec;
use annulus_transport::{CallError, kind};

/// A leader that heard from a majority within this time believes that it still leads.
const FRESH_QUORUM: Duration = Duration::from_secs(1);

/// Longest that a leader waits for a majority to show itself before it refuses a command.
const QUORUM_WAIT: Duration = Duration::from_secs(1);

/// Pause between two rounds of looking for a leader, unless one appears earlier.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// After so long without an answer from a majority of the voters nobody waits for a leader any
/// more. Longer than a peer that was paused or restarted for a moment needs to be back.
const NO_MAJORITY: Duration = Duration::from_millis(1500);

/// So many hints are followed without a pause: two nodes may point at each other for a moment.
const MAX_HOPS: u32 = 4;

/// Why a command has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader was found before the deadline. Not applied.
    #[error("the cluster has no leader at the moment; nothing was changed")]
    NoLeader,
    /// The leader has no majority of voters behind it. Not applied.
    #[error("no majority of the cluster's voters can be reached; nothing was changed")]
    NoQuorum,
    /// The node waits for another cluster's answer to its join, which would wipe the change. Not applied.
    #[error(
        "this node is asking {0} to let it join, which would wipe this change; nothing was changed. Try again \
         when the join has ended"
    )]
    Joining(std::net::SocketAddr),
    /// A newer lineage does not have this node, which has no say any more. Not applied.
    #[error(
        "the cluster was recovered without this node, which is no member of it any more; nothing was changed. \
         Ask a member; `annulus status` on this node says what can be done with it"
    )]
    Outside,
    /// The command's turn came and it changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was handed over and no answer came: it may be applied, now or later.
    #[error(
        "the change was handed over, and its answer was lost or late: it is not known whether it happened"
    )]
    Unknown,
}

/// What one node made of a command.
enum Attempt {
    Applied(u64, Outcome),
    /// Certainly nothing happened there; perhaps it knows who leads.
    NotLeader(Option<NodeId>),
    /// Nothing was sent: nobody answers there.
    Silent,
    NoQuorum,
    Unknown,
}

impl Cluster {
    /// Changes the cluster's state. The answer comes after this node has applied the entry if it
    /// leads; elsewhere see [`Cluster::wait_applied`] with the index.
    pub fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<(u64, Outcome), ProposeError>> {
        Box::pin(async move {
            self.check_level(&command)?;
            if self.view().outside.is_some() {
                return Err(ProposeError::Outside);
            }
            let _turn = self.growth().enter(&command, deadline).await?;
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
                        // Not one that this round has asked in vain: its successor may be further on.
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
                if hint.is_some() || self.is_majority(&heard) {
                    majority_seen = Instant::now();
                } else if majority_seen.elapsed() >= NO_MAJORITY {
                    return Err(ProposeError::NoQuorum);
                }
                let mut metrics = self.raft().server_metrics();
                metrics.mark_unchanged();
                let pause = (Instant::now() + ROUND_PAUSE).min(deadline);
                match timeout_at(pause, metrics.changed()).await {
                    Ok(Ok(())) => continue,
                    // This node's Raft has ended and tells of no leader any more.
                    Ok(Err(_)) => sleep_until(pause).await,
                    Err(_) => {}
                }
                if pause == deadline {
                    return Err(failure);
                }
            }
        })
    }

    /// Whom to ask, in order: the hint, the leader that this node knows, everybody.
    fn candidates(&self, hint: Option<NodeId>) -> Vec<NodeId> {
        let view = self.view();
        // A leader that was removed leads on until it ends, but nothing comes of it.
        let lives = |node: &NodeId| view.state.live_members().any(|member| member.id == *node);
        let leader = self.leader().filter(lives);
        let mut order: Vec<NodeId> = hint.into_iter().chain(leader).collect();
        order.extend(view.state.live_members().map(|member| member.id));
        let mut seen = BTreeSet::new();
        order.retain(|node| seen.insert(*node));
        order
    }

    async fn attempt(&self, node: NodeId, command: &Command, deadline: Instant) -> Attempt {
        if node == self.me() {
            return match self.propose_here(command.clone(), deadline).await {
                ProposeReply::Applied { index, outcome } => Attempt::Applied(index, outcome),
                ProposeReply::NotLeader { leader } => Attempt::NotLeader(leader),
                ProposeReply::NoQuorum => Attempt::NoQuorum,
                ProposeReply::Unknown => Attempt::Unknown,
            };
        }
        let Ok(payload) = codec::encode(command) else { return Attempt::Unknown };
        match self.call(node, kind::PROPOSE, Bytes::from(payload), deadline).await {
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

    /// Proposes a command if this node leads.
    pub(super) async fn propose_here(&self, command: Command, deadline: Instant) -> ProposeReply {
        if !self.leads() {
            return ProposeReply::NotLeader { leader: self.leader().filter(|leader| *leader != self.me()) };
        }
        // Nobody follows it any more: what it took now would be neither committed nor refused.
        let view = self.view();
        if view.is_removed() || view.outside.is_some() {
            return ProposeReply::NotLeader { leader: None };
        }
        // What may not be said yet must not come into the log: not every member could read it.
        if let Err(refusal) = self.check_level(&command) {
            return ProposeReply::Applied { index: self.view().index(), outcome: Outcome::Refused(refusal) };
        }
        // Half of what is left, so that the refusal arrives before the caller's deadline.
        let now = Instant::now();
        let patience = QUORUM_WAIT.min(deadline.saturating_duration_since(now) / 2);
        if !self.quorum_shows(now + patience).await {
            return ProposeReply::NoQuorum;
        }
        annulus_ground::point("proposals: the leader takes one").await;
        match timeout_at(deadline, self.raft().client_write(command)).await {
            Ok(Ok(response)) => match response.data {
                Some(outcome) => ProposeReply::Applied { index: response.log_id.index, outcome },
                None => ProposeReply::Unknown,
            },
            // Even "forward to leader": openraft says it too of entries that were in its log and
            // gave way to another leader's, and those may live on in a third one.
            Ok(Err(_)) | Err(_) => ProposeReply::Unknown,
        }
    }

    /// Waits until this leader has heard from a majority a moment ago.
    async fn quorum_shows(&self, deadline: Instant) -> bool {
        loop {
            let next = self.contact().next_follower();
            tokio::pin!(next);
            next.as_mut().enable();
            if self.has_quorum(FRESH_QUORUM) {
                return true;
            }
            if timeout_at(deadline, next).await.is_err() {
                return false;
            }
        }
    }

    /// Is this node the leader, as far as it knows?
    pub(super) fn leads(&self) -> bool {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow();
        metrics.state == ServerState::Leader && metrics.running_state.is_ok()
    }

    /// Are these a majority of the voters, of the old and of the new ones while they change?
    pub(super) fn is_majority(&self, nodes: &BTreeSet<u64>) -> bool {
        let metrics = self.raft().metrics();
        let membership = metrics.borrow().membership_config.clone();
        let configs = membership.membership().get_joint_config();
        // A node that knows of no voters yet has no say in whether there are enough.
        configs.iter().all(|voters| voters.intersection(nodes).count() > voters.len() / 2)
    }

    /// Has Raft told this node who votes?
    pub(super) fn knows_voters(&self) -> bool {
        !self.raft_members().voters.is_empty()
    }

    /// Did a majority of voters follow this leader within the limit?
    pub(super) fn has_quorum(&self, limit: Duration) -> bool {
        let metrics = self.raft().metrics();
        let membership = metrics.borrow().membership_config.clone();
        self.contact().quorum_within(self.me().0, membership.membership().get_joint_config(), limit)
    }
}
