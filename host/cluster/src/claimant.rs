//! The claimant, which runs on the leader and proposes the changes that need no operator (DESIGN.md D3).
//!
//! The claimant compares the committed state with Raft's members and proposes the next change that is due:
//! joining nodes that have caught up become members, members get their share of the ring, voters are chosen,
//! leaving nodes without partitions are removed. Every proposal is checked again when it is applied, so two
//! claimants (of an old and a new leader) do no harm. The claimant moves no data and gives no partition away:
//! only a partition's owner does that (R1).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::codec;
use annulus_core::ids::NodeId;
use annulus_core::state::{Command, Member, MemberStatus, Module, Outcome};
use annulus_core::voters::{self, Candidate};
use annulus_transport::{beat, kind};
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use tokio::time::{Instant, timeout};

use super::authority::{Authorities, SigningError};
use super::group::RaftGroup;
use super::peers::Peers;
use super::propose::{ProposeError, Proposer};
use super::raft::MEMBERSHIP_TIMEOUT;
use super::returned::DownMarks;
use super::versions::Versions;
use super::view::{View, Views};

/// Pause between two steps while a process runs whose next step no event announces: a learner's progress, the
/// silence of a node that leaves, a reply of a node that is marked down.
const PERIOD: Duration = Duration::from_millis(100);

/// Pause between two steps at rest: a voter's long silence and a member that speaks a newer level are not
/// urgent. Changes of the state, of Raft's members and of the leader end the pause.
const REST: Duration = Duration::from_millis(500);

/// Time after the last change for which such a process is assumed to run.
const STIRRED: Duration = Duration::from_secs(5);

/// Pause after a failed step.
const PAUSE: Duration = Duration::from_millis(500);

/// Longest time for one proposal.
const PROPOSAL: Duration = Duration::from_secs(5);

/// A learner that lacks at most this many entries has caught up: a few are always in transit.
const CAUGHT_UP: u64 = 16;

/// A node that has replied within this time is alive.
const ALIVE: Duration = Duration::from_secs(2);

/// A voter that is silent for this long is replaced, if another node can vote (R18). Shorter in tests.
const SILENT_VOTER: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 30 });

/// Longest time for which a removed node still receives the log. It normally falls silent earlier, because it
/// ends once it learns of its removal.
const FAREWELL: Duration = Duration::from_secs(10);

/// Time limit for a node that leaves to say whether it keeps hints.
const HINTS_LIMIT: Duration = Duration::from_secs(1);

/// The reason for which a step failed. The next round tries again from the state at that time.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("Raft refuses: {0}")]
    Raft(Box<RaftError<u64, ClientWriteError<u64, EmptyNode>>>),
    #[error("Raft did not change its members in time")]
    Timeout,
}

/// The Raft group as its leader sees it.
struct Group {
    voters: BTreeSet<u64>,
    nodes: BTreeSet<u64>,
    /// The new voters of a change that its leader left unfinished.
    unfinished: Option<BTreeSet<u64>>,
    last_index: u64,
    matched: BTreeMap<u64, u64>,
}

/// Proposes the changes that are due, while this node leads.
pub(super) struct Claimant {
    me: NodeId,
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    proposer: Arc<Proposer>,
    versions: Arc<Versions>,
    authorities: Arc<Authorities>,
    peers: Peers,
    /// Time at which this leader first saw each removed node that is still in the group.
    farewells: BTreeMap<NodeId, Instant>,
    marks: DownMarks,
    /// The view at the last check that found the ring's target table correct. The check takes long.
    settled: Option<Arc<View>>,
}

impl Claimant {
    pub(super) fn new(
        me: NodeId,
        views: Arc<Views>,
        group: Arc<RaftGroup>,
        proposer: Arc<Proposer>,
        versions: Arc<Versions>,
        authorities: Arc<Authorities>,
        peers: Peers,
    ) -> Self {
        let (farewells, marks, settled) = Default::default();
        Self { me, views, group, proposer, versions, authorities, peers, farewells, marks, settled }
    }

    /// Run until the control plane stops.
    pub(super) async fn run(mut self) {
        // No node has been silent towards this leader for longer than it leads.
        let mut led_since = Instant::now();
        let mut stirred = Instant::now();
        loop {
            let mut views = self.views.subscribe();
            views.mark_unchanged();
            let mut raft = self.group.raft().server_metrics();
            raft.mark_unchanged();
            if !self.group.leads() {
                led_since = Instant::now();
            }
            let pause = if self.group.leads() && self.group.has_quorum(ALIVE) {
                match self.step(led_since.elapsed()).await {
                    // Make one change at a time. The next one follows from the state after it.
                    Ok(true) => {
                        stirred = Instant::now();
                        continue;
                    }
                    Ok(false) if stirred.elapsed() < STIRRED || self.waits() => PERIOD,
                    Ok(false) => REST,
                    Err(error) => {
                        tracing::info!(%error, "a change of the cluster must wait");
                        PAUSE
                    }
                }
            } else {
                self.farewells.clear();
                self.marks.clear();
                // A leader's majority may reply at any moment; a follower is woken when it leads.
                if self.group.leads() { PERIOD } else { REST }
            };
            tokio::select! {
                () = beat::sleep(pause) => {}
                _ = views.changed() => stirred = Instant::now(),
                // An error means that this Raft has ended. The next one is used after the pause.
                Ok(()) = raft.changed() => stirred = Instant::now(),
            }
        }
    }

    /// Make the first change that is due. Return true if there was one.
    async fn step(&mut self, led_for: Duration) -> Result<bool, StepError> {
        let group = self.members();
        let view = self.views.load();
        annulus_ground::point("claimant: has looked").await;
        if let Some(voters) = group.unfinished {
            self.change_membership(ChangeMembers::ReplaceAllVoters(voters)).await?;
            return Ok(true);
        }
        if let Some(node) = view.state.live_members().find(|member| !group.nodes.contains(&member.id.0)) {
            tracing::info!(node = %node.id, name = %node.name, "receives the cluster's log from now on");
            let learner = BTreeMap::from([(node.id.0, EmptyNode::new())]);
            self.change_membership(ChangeMembers::AddNodes(learner)).await?;
            return Ok(true);
        }
        let contact = self.group.contact();
        let silence_of = |node: NodeId| contact.silence_of(node.0);
        if let Some(node) = self.marks.returned(&view.state, self.me, silence_of) {
            tracing::info!(%node, "was marked down and answers again");
            return self.decide(Command::Up { node }).await;
        }
        // A staged member becomes a member when the plan is committed.
        if let Some(node) = view.state.due_to_join(|node| self.caught_up(&group, node)) {
            tracing::info!(%node, "has caught up and is a member");
            return self.decide(Command::Joined { node }).await;
        }
        let candidates = self.candidates_to_vote(&view, &group, led_for);
        if let Some(voters) = voters::next_voters(&group.voters, &candidates, self.me.0) {
            match self.hand_over_key(&group.voters, &voters).await {
                Ok(()) => {
                    tracing::info!(from = ?group.voters, to = ?voters, "the voters change");
                    self.change_membership(ChangeMembers::ReplaceAllVoters(voters)).await?;
                    return Ok(true);
                }
                // Other changes must not wait for that node.
                Err(error) => tracing::warn!(%error, to = ?voters, "the voters do not change"),
            }
        }
        // A node that has left must hear of it by the log, which it may not be able to read at the next level.
        let parting =
            view.state.members.values().any(|member| !member.is_live() && group.nodes.contains(&member.id.0));
        // From its level on, the key of the authority is no longer in the state.
        let is_key_safe = view.state.binds_keys() || self.authorities.is_in_file();
        if !parting
            && is_key_safe
            && let Some(raise) = self.versions.due_raise(&view)
        {
            tracing::info!(?raise, "all members speak a higher level of the state");
            return self.decide(raise).await;
        }
        if !self.settled.as_ref().is_some_and(|settled| Arc::ptr_eq(settled, &view)) {
            if let Some(table) = better_table(&view).await {
                tracing::info!(base = view.state.ring.epoch, "the ring gets a new table");
                return self.decide(Command::Rebalance { base: view.state.ring.epoch, table }).await;
            }
            self.settled = Some(view.clone());
        }
        for node in view.state.due_to_go(|node| group.voters.contains(&node.0)) {
            if self.keeps_hints(&view, node).await {
                tracing::debug!(%node, "keeps items for others and is not removed yet");
                continue;
            }
            tracing::info!(%node, "no longer holds anything and is removed");
            return self.decide(Command::Removed { node }).await;
        }
        self.drop_removed(&view, &group).await
    }

    /// Return true if a node may keep items that too few members have (R7). One that does not answer may.
    async fn keeps_hints(&self, view: &View, node: NodeId) -> bool {
        if !view.state.modules.values().any(Module::may_have_hints) {
            return false;
        }
        let deadline = Instant::now() + HINTS_LIMIT;
        // It takes no more of them from the state on in which it leaves.
        let Ok(question) = codec::encode(&view.index()) else { return true };
        let answer = self.peers.call(node, kind::HINTS, question.into(), deadline).await.ok();
        answer.and_then(|answer| codec::decode::<usize>(&answer).ok()) != Some(0)
    }

    /// Hand the authority's key to the nodes that are about to vote: whichever of the voters are lost, the others can
    /// sign.
    async fn hand_over_key(&self, from: &BTreeSet<u64>, to: &BTreeSet<u64>) -> Result<(), SigningError> {
        for node in to.difference(from) {
            self.authorities.hand_over(NodeId(*node)).await?;
        }
        Ok(())
    }

    /// Drop a removed node from the group once it has learned of its removal.
    async fn drop_removed(&mut self, view: &View, group: &Group) -> Result<bool, StepError> {
        let removed = view.state.members.values().filter(|member| {
            !member.is_live() && group.nodes.contains(&member.id.0) && !group.voters.contains(&member.id.0)
        });
        for node in removed {
            let since = *self.farewells.entry(node.id).or_insert_with(Instant::now);
            let silent = self.group.contact().silence_of(node.id.0).is_none_or(|silence| silence > ALIVE);
            if since.elapsed() > FAREWELL || silent && since.elapsed() > ALIVE {
                self.change_membership(ChangeMembers::RemoveNodes([node.id.0].into())).await?;
                self.farewells.remove(&node.id);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Return true if a node is joining, leaving or marked down.
    fn waits(&self) -> bool {
        let group = self.members();
        let at_rest = |member: &Member| match member.status {
            MemberStatus::Member => group.nodes.contains(&member.id.0),
            MemberStatus::Removed => !group.nodes.contains(&member.id.0),
            MemberStatus::Joining | MemberStatus::Leaving | MemberStatus::Down => false,
        };
        group.unfinished.is_some() || !self.views.load().state.members.values().all(at_rest)
    }

    fn members(&self) -> Group {
        let metrics = self.group.raft().metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let joint = membership.get_joint_config();
        let matched = metrics.replication.iter().flatten();
        Group {
            voters: membership.voter_ids().collect(),
            nodes: membership.nodes().map(|(id, _)| *id).collect(),
            unfinished: if joint.len() > 1 { joint.last().cloned() } else { None },
            last_index: metrics.last_log_index.unwrap_or(0),
            matched: matched.filter_map(|(id, at)| Some((*id, at.as_ref()?.index))).collect(),
        }
    }

    fn caught_up(&self, group: &Group, node: NodeId) -> bool {
        let has = group.matched.get(&node.0);
        node == self.me || has.is_some_and(|has| has + CAUGHT_UP >= group.last_index)
    }

    /// Return the members that may vote.
    fn candidates_to_vote(&self, view: &View, group: &Group, led_for: Duration) -> Vec<Candidate> {
        let leaves = |member: &Member| member.status == MemberStatus::Leaving;
        let members = view.state.live_members();
        members
            .filter(|member| member.may_hold() || leaves(member) && view.state.holds(member.id))
            .map(|member| {
                let id = member.id.0;
                let me = member.id == self.me;
                let silence = self.group.contact().silence_of(id);
                let alive = me || silence.is_some_and(|silence| silence <= ALIVE);
                Candidate {
                    id,
                    zone: member.zone.clone(),
                    ready: alive && member.status == MemberStatus::Member && self.caught_up(group, member.id),
                    // The mark is an operator's statement that the node is silent.
                    silent: !me
                        && (member.status == MemberStatus::Down
                            || silence.unwrap_or(led_for).min(led_for) > SILENT_VOTER),
                    leaves: leaves(member),
                }
            })
            .collect()
    }

    async fn decide(&self, command: Command) -> Result<bool, StepError> {
        match self.proposer.propose(command, Instant::now() + PROPOSAL).await? {
            (_, Outcome::Refused(refusal)) => Err(ProposeError::Refused(refusal).into()),
            _ => Ok(true),
        }
    }

    /// Change Raft's members. A node that no longer votes stays as a learner.
    async fn change_membership(&self, change: ChangeMembers<u64, EmptyNode>) -> Result<(), StepError> {
        let retain = true;
        match timeout(MEMBERSHIP_TIMEOUT, self.group.raft().change_membership(change, retain)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(StepError::Raft(Box::new(error))),
            Err(_) => Err(StepError::Timeout),
        }
    }
}

/// Return the target table that is due, if it differs from the ring's.
async fn better_table(view: &Arc<View>) -> Option<Vec<Vec<NodeId>>> {
    let view = view.clone();
    // The table is computed off Raft's thread, because it takes long for a large ring.
    let table = annulus_ground::blocking(move || view.state.due_table());
    table.await.ok().flatten()
}
