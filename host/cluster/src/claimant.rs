//! What the cluster does by itself: the claimant's work, on whichever node leads (DESIGN.md D3).
//!
//! It looks at the committed state and at Raft, and proposes the one next thing that follows:
//! joining nodes that have caught up become members, members get their share of the ring, the
//! right nodes vote, leaving nodes that hold nothing go. Every proposal is checked again when its
//! turn comes, so two claimants (an old leader and a new one) do no harm. It moves no data and
//! gives no partition away: only a partition's holder does that (R1).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::state::{Command, Member, MemberStatus, Outcome};
use annulus_core::voters::{self, Candidate};
use annulus_transport::beat;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use tokio::time::{Instant, timeout};

use super::raft::MEMBERSHIP_TIMEOUT;
use super::returned::Marks;
use super::view::View;
use super::{Cluster, ProposeError};

/// How often it looks while something is under way whose next step no event tells: a learner's
/// progress, the silence of a node that goes, the answer of one that is marked down.
const PERIOD: Duration = Duration::from_millis(100);

/// How often it looks when nothing is: what comes then unasked, a voter's long silence or a
/// member that speaks a newer level, is not urgent. Changes of the state and of Raft's members or
/// leader wake it at any time.
const REST: Duration = Duration::from_millis(500);

/// Something is taken to be under way for this long after the last change.
const STIRRED: Duration = Duration::from_secs(5);

/// Pause after something did not work.
const PAUSE: Duration = Duration::from_millis(500);

/// How long one proposal may take.
const PROPOSAL: Duration = Duration::from_secs(5);

/// A learner that lacks at most so many entries has caught up: more may be under way at any time.
const CAUGHT_UP: u64 = 16;

/// A node that answered within this time is alive.
const ALIVE: Duration = Duration::from_secs(2);

/// A voter silent for this long is replaced, if somebody can (R18). Tests have less patience.
const SILENT_VOTER: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 30 });

/// A removed node is kept informed until it falls silent, which is how it ends, but not longer
/// than this.
const FAREWELL: Duration = Duration::from_secs(10);

/// Why a step did not happen. The next round tries again from what is true then.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("Raft refuses: {0}")]
    Raft(Box<RaftError<u64, ClientWriteError<u64, EmptyNode>>>),
    #[error("Raft did not change its members in time")]
    Timeout,
}

/// What a leader sees of its Raft group.
struct Group {
    voters: BTreeSet<u64>,
    nodes: BTreeSet<u64>,
    /// An unfinished change of voters (its maker crashed) aims at these.
    unfinished: Option<BTreeSet<u64>>,
    last_index: u64,
    matched: BTreeMap<u64, u64>,
}

impl Cluster {
    /// Runs for as long as the node does; works while the node leads.
    pub(super) async fn run_claimant(self) {
        let mut farewells = BTreeMap::new();
        // Nobody has been silent towards this leader for longer than it leads.
        let mut led_since = Instant::now();
        let mut marks = Marks::default();
        let mut settled = None;
        let mut stirred = Instant::now();
        loop {
            let mut views = self.watch();
            views.mark_unchanged();
            let mut raft = self.raft().server_metrics();
            raft.mark_unchanged();
            if !self.leads() {
                led_since = Instant::now();
            }
            let pause = if self.leads() && self.has_quorum(ALIVE) {
                match self.step(led_since.elapsed(), &mut farewells, &mut marks, &mut settled).await {
                    // One thing at a time: the next follows from what is true after it.
                    Ok(true) => {
                        stirred = Instant::now();
                        continue;
                    }
                    Ok(false) if stirred.elapsed() < STIRRED || self.waits() => PERIOD,
                    Ok(false) => REST,
                    Err(error) => {
                        tracing::info!(%error, "a change of the cluster has to wait");
                        PAUSE
                    }
                }
            } else {
                farewells.clear();
                marks.clear();
                // A leader's majority may answer at any moment; who follows hears when it leads.
                if self.leads() { PERIOD } else { REST }
            };
            tokio::select! {
                () = beat::sleep(pause) => {}
                _ = views.changed() => stirred = Instant::now(),
                // An error: this Raft has ended, and the next one is found after the pause.
                Ok(()) = raft.changed() => stirred = Instant::now(),
            }
        }
    }

    /// Does the first thing that is due; says whether there was one. `settled` is the view in which
    /// the ring was last seen to aim at the right table, which is work to find out.
    async fn step(
        &self,
        led_for: Duration,
        farewells: &mut BTreeMap<NodeId, Instant>,
        marks: &mut Marks,
        settled: &mut Option<Arc<View>>,
    ) -> Result<bool, StepError> {
        let group = self.group();
        let view = self.view();
        annulus_ground::point("claimant: has looked").await;
        if let Some(voters) = group.unfinished {
            self.change_membership(ChangeMembers::ReplaceAllVoters(voters)).await?;
            return Ok(true);
        }
        if let Some(node) = view.state.live_members().find(|member| !group.nodes.contains(&member.id.0)) {
            tracing::info!(node = %node.id, name = %node.name, "learns the cluster's log from now on");
            let learner = BTreeMap::from([(node.id.0, EmptyNode::new())]);
            self.change_membership(ChangeMembers::AddNodes(learner)).await?;
            return Ok(true);
        }
        let silence_of = |node: NodeId| self.contact().silence_of(node.0);
        if let Some(node) = marks.returned(&view.state, self.me(), silence_of) {
            tracing::info!(%node, "was marked down and answers again");
            return self.decide(Command::Up { node }).await;
        }
        // One that waits for a plan is taken in by its commit.
        if let Some(node) = view.state.due_to_join(|node| self.caught_up(&group, node)) {
            tracing::info!(%node, "has caught up and is a member");
            return self.decide(Command::Joined { node }).await;
        }
        let candidates = self.candidates_to_vote(&view, &group, led_for);
        if let Some(voters) = voters::next_voters(&group.voters, &candidates, self.me().0) {
            tracing::info!(from = ?group.voters, to = ?voters, "the voters change");
            self.change_membership(ChangeMembers::ReplaceAllVoters(voters)).await?;
            return Ok(true);
        }
        if let Some(raise) = self.due_raise(&view) {
            tracing::info!(?raise, "all members speak a higher level of the state");
            return self.decide(raise).await;
        }
        if !settled.as_ref().is_some_and(|settled| Arc::ptr_eq(settled, &view)) {
            if let Some(table) = better_table(&view).await {
                tracing::info!(base = view.state.ring.epoch, "the ring gets a new table");
                return self.decide(Command::Rebalance { base: view.state.ring.epoch, table }).await;
            }
            *settled = Some(view.clone());
        }
        if let Some(node) = view.state.due_to_go(|node| group.voters.contains(&node.0)) {
            tracing::info!(%node, "holds nothing any more and is removed");
            return self.decide(Command::Removed { node }).await;
        }
        self.say_farewell(&view, &group, farewells).await
    }

    /// Drops removed nodes from the group, once they know.
    async fn say_farewell(
        &self,
        view: &View,
        group: &Group,
        farewells: &mut BTreeMap<NodeId, Instant>,
    ) -> Result<bool, StepError> {
        let removed = view.state.members.values().filter(|member| {
            !member.is_live() && group.nodes.contains(&member.id.0) && !group.voters.contains(&member.id.0)
        });
        for node in removed {
            let since = *farewells.entry(node.id).or_insert_with(Instant::now);
            let silent = self.contact().silence_of(node.id.0).is_none_or(|silence| silence > ALIVE);
            if since.elapsed() > FAREWELL || silent && since.elapsed() > ALIVE {
                self.change_membership(ChangeMembers::RemoveNodes([node.id.0].into())).await?;
                farewells.remove(&node.id);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Is anybody on the way in or out, or marked down?
    fn waits(&self) -> bool {
        let group = self.group();
        let at_rest = |member: &Member| match member.status {
            MemberStatus::Member => group.nodes.contains(&member.id.0),
            MemberStatus::Removed => !group.nodes.contains(&member.id.0),
            MemberStatus::Joining | MemberStatus::Leaving | MemberStatus::Down => false,
        };
        group.unfinished.is_some() || !self.view().state.members.values().all(at_rest)
    }

    fn group(&self) -> Group {
        let metrics = self.raft().metrics();
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
        node == self.me() || has.is_some_and(|has| has + CAUGHT_UP >= group.last_index)
    }

    /// The nodes that take part, as far as voting is concerned.
    fn candidates_to_vote(&self, view: &View, group: &Group, led_for: Duration) -> Vec<Candidate> {
        let leaves = |member: &Member| member.status == MemberStatus::Leaving;
        let members = view.state.live_members();
        members
            .filter(|member| member.may_hold() || leaves(member) && view.state.holds(member.id))
            .map(|member| {
                let id = member.id.0;
                let me = member.id == self.me();
                let silence = self.contact().silence_of(id);
                let alive = me || silence.is_some_and(|silence| silence <= ALIVE);
                Candidate {
                    id,
                    zone: member.zone.clone(),
                    ready: alive && member.status == MemberStatus::Member && self.caught_up(group, member.id),
                    // Of one that is marked down an operator says so.
                    silent: !me
                        && (member.status == MemberStatus::Down
                            || silence.unwrap_or(led_for).min(led_for) > SILENT_VOTER),
                    leaves: leaves(member),
                }
            })
            .collect()
    }

    async fn decide(&self, command: Command) -> Result<bool, StepError> {
        match self.propose(command, Instant::now() + PROPOSAL).await? {
            (_, Outcome::Refused(refusal)) => Err(ProposeError::Refused(refusal).into()),
            _ => Ok(true),
        }
    }

    /// Who is dropped as a voter stays as a learner.
    async fn change_membership(&self, change: ChangeMembers<u64, EmptyNode>) -> Result<(), StepError> {
        let retain = true;
        match timeout(MEMBERSHIP_TIMEOUT, self.raft().change_membership(change, retain)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(StepError::Raft(Box::new(error))),
            Err(_) => Err(StepError::Timeout),
        }
    }
}

/// The table that the ring should aim at, if it is another one than it aims at.
async fn better_table(view: &Arc<View>) -> Option<Vec<Vec<NodeId>>> {
    let view = view.clone();
    // Off Raft's thread: for a large ring it is work.
    let table = annulus_ground::blocking(move || view.state.due_table());
    table.await.ok().flatten()
}
