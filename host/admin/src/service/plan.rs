//! Planned changes: computes their effect, stages and commits them, and follows their transfers.

use std::collections::BTreeMap;

use annulus_core::ids::NodeId;
use annulus_core::keyspace::PartitionId;
use annulus_core::state::{Change, MemberStatus, Plan, Refusal};
use annulus_core::wording::counted;
use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::{AdminService, CHANGE_LIMIT, HEARTBEAT, LOOK_LIMIT};
use crate::plan_rows::{ChangeRow, CommittedRow, LossRow, MoveRow, PlanRow, ShareRow, StagedRow, WarningRow};
use crate::{AdminError, PlanOf};
use annulus_cluster::{Changed, Ended, View};
use annulus_handoff::PartitionSize;

/// Numbers of items and bytes; `None` if unknown.
type Amount = Option<(u64, u64)>;

impl AdminService {
    pub(super) async fn plan(&self, shown: bool, of: Option<PlanOf>) -> Result<PlanRow, AdminError> {
        let deadline = Instant::now() + LOOK_LIMIT;
        let of_staged = of.is_none();
        let plan = match of {
            None => self.parts.cluster.plan(deadline).await?,
            Some(of) => Some(self.parts.cluster.plan_of(self.change_of(&of)?).await?),
        };
        let view = self.view();
        let Some(mut plan) = plan else {
            if shown {
                *self.shown.lock() = None;
            }
            return Ok(PlanRow {
                plan: None,
                epoch: view.state.ring.epoch,
                changes: Vec::new(),
                nodes: Vec::new(),
                moves: Vec::new(),
                warnings: Vec::new(),
                shown: None,
            });
        };
        plan.warn_of_the_away(&view.state, |node| self.is_up(&view, node));
        let owners: BTreeMap<PartitionId, NodeId> =
            plan.moves.iter().filter(|one| one.owner).map(|one| (one.partition, one.from)).collect();
        let held = self.parts.handoff.partition_sizes(&owners, deadline).await;
        let before = self.shown.lock().clone();
        if shown && of_staged {
            *self.shown.lock() = Some(plan.id());
        }
        Ok(PlanRow { shown: before, ..rows(&view, &plan, &held) })
    }

    fn change_of(&self, of: &PlanOf) -> Result<Change, AdminError> {
        match of {
            PlanOf::Remove(node) => self.removal(node),
            PlanOf::Replace(old, new) => self.replacement(old, new),
        }
    }

    /// Return the change that removes a node. Refuse it for a node that is up, which can still hand off its partitions.
    pub(super) fn removal(&self, name: &str) -> Result<Change, AdminError> {
        let view = self.view();
        let node = by_name(&view, name)?;
        if self.is_up(&view, node) {
            return Err(is_up_still(name));
        }
        Ok(Change::Remove { node })
    }

    /// Return the change that replaces a node. A node that does not answer must be marked as down first.
    pub(super) fn replacement(&self, old: &str, new: &str) -> Result<Change, AdminError> {
        let view = self.view();
        let change = Change::Replace { old: by_name(&view, old)?, new: by_name(&view, new)? };
        let status = view.member(change.node()).map(|member| member.status);
        if status != Some(MemberStatus::Down) && !self.is_up(&view, change.node()) {
            // A leaving node can neither be marked as down nor be replaced.
            let then = match status {
                Some(MemberStatus::Leaving) => {
                    format!("`annulus remove {old}` discards the items that only it held")
                }
                _ => format!(
                    "run `annulus down {old}` first; the replacement then discards the items that only {old} held"
                ),
            };
            let message = format!(
                "{old} does not answer, so it cannot hand off its partitions: start it again; or, if it is gone for \
                 good, {then}"
            );
            return Err(AdminError::not_applied("not-allowed", message));
        }
        Ok(change)
    }

    pub(super) async fn stage(&self, change: Change) -> Result<StagedRow, AdminError> {
        self.parts.cluster.stage(change, Instant::now() + CHANGE_LIMIT).await?;
        Ok(self.staged())
    }

    pub(super) async fn clear_staged(&self) -> Result<StagedRow, AdminError> {
        self.parts.cluster.learn_news(Instant::now() + LOOK_LIMIT).await;
        let cleared = self.staged();
        self.parts.cluster.clear_staged(Instant::now() + CHANGE_LIMIT).await?;
        *self.shown.lock() = None;
        Ok(cleared)
    }

    fn staged(&self) -> StagedRow {
        let view = self.view();
        StagedRow { changes: change_rows(&view, &view.state.staged) }
    }

    /// Commit a single change without staging it.
    pub(super) async fn change(
        &self,
        change: Change,
        wait: bool,
        deadline: Instant,
        answer: &mut Answer,
    ) -> Result<CommittedRow, AdminError> {
        let limit = deadline.min(Instant::now() + CHANGE_LIMIT);
        let changed = self.parts.cluster.change(change, limit).await?;
        self.follow(&changed, wait, deadline, answer).await
    }

    pub(super) async fn commit(
        &self,
        id: Option<&str>,
        wait: bool,
        deadline: Instant,
        answer: &mut Answer,
    ) -> Result<CommittedRow, AdminError> {
        let limit = deadline.min(Instant::now() + CHANGE_LIMIT);
        self.parts.cluster.learn_news(limit).await;
        let view = self.view();
        // Refuse to remove or replace as lost a node that is up again.
        let back = view.state.staged.iter().find_map(|change| match change {
            Change::Remove { node } if self.is_up(&view, *node) => Some(*node),
            // Replacing a node that is marked as down removes it. This one is up, but still has the mark.
            Change::Replace { old, .. } => Some(*old).filter(|old| {
                let is_down = view.member(*old).is_some_and(|member| member.status == MemberStatus::Down);
                is_down && self.is_up(&view, *old)
            }),
            _ => None,
        });
        if let Some(node) = back {
            return Err(is_up_still(&name(&view, node)));
        }
        let changed = self.parts.cluster.commit(id, limit).await?;
        *self.shown.lock() = None;
        self.follow(&changed, wait, deadline, answer).await
    }

    /// Report the progress of a change until all partitions have moved and all leaving or removed nodes have left.
    async fn follow(
        &self,
        changed: &Changed,
        wait: bool,
        deadline: Instant,
        answer: &mut Answer,
    ) -> Result<CommittedRow, AdminError> {
        let Changed { index, plan } = changed;
        let mut views = self.parts.cluster.watch();
        let mut ended = self.parts.cluster.ended();
        let goes = |node: &NodeId| {
            let becomes = plan.nodes.iter().find(|share| share.node == *node).map(|share| share.becomes);
            matches!(becomes, Some(MemberStatus::Leaving | MemberStatus::Removed))
        };
        let mut most = 0;
        loop {
            let view = views.borrow_and_update().clone();
            let pending = view.state.ring.transfers().count();
            most = most.max(pending);
            let staying = view.state.live_members().filter(|member| goes(&member.id)).count();
            let settled = view.index() >= *index && pending == 0 && staying == 0;
            // A node that has left may never receive the entries that complete the change.
            if settled || !wait || *ended.borrow_and_update() == Some(Ended::Removed) {
                let lost = view.state.losses.iter().filter(|(_, loss)| loss.index == *index);
                return Ok(CommittedRow {
                    plan: plan.id(),
                    index: *index,
                    changes: change_rows(&view, &plan.changes),
                    moved: plan.moves.iter().filter(|one| one.owner).count(),
                    taken_over: taken_over(plan),
                    possible_loss: lost.map(|(partition, _)| partition.0).collect(),
                    settled,
                });
            }
            answer.progress("moving partitions", (most - pending) as u64, most as u64).await;
            if Instant::now() >= deadline {
                let message = format!(
                    "the change is committed; {} still to move. The transfers continue, `annulus transfers` shows them",
                    counted(pending, "partition"),
                );
                let error = AdminError::unknown("deadline-exceeded", message);
                return Err(AdminError { state: "applied".to_owned(), ..error });
            }
            let news = async {
                tokio::select! { _ = views.changed() => {}, _ = ended.changed() => {} }
            };
            // A timeout only leads to the next heartbeat.
            let _ = timeout(HEARTBEAT.min(deadline.saturating_duration_since(Instant::now())), news).await;
        }
    }

    /// Return the partitions whose items may be lost, grouped by the log entry and the node that caused the loss.
    pub(super) fn losses(&self, view: &View) -> Vec<LossRow> {
        let mut rows: BTreeMap<(u64, NodeId), LossRow> = BTreeMap::new();
        for (partition, loss) in &view.state.losses {
            let row = rows.entry((loss.index, loss.node)).or_insert_with(|| LossRow {
                node: loss.name.clone(),
                index: loss.index,
                partitions: Vec::new(),
            });
            row.partitions.push(partition.0);
        }
        rows.into_values().collect()
    }

    pub(super) async fn acknowledge(&self, up_to: u64, incidents: u64) -> Result<(), AdminError> {
        if self.view().state.losses.values().any(|loss| loss.index <= up_to) {
            self.parts.cluster.acknowledge(up_to, Instant::now() + CHANGE_LIMIT).await?;
        }
        self.parts.master.acknowledge(incidents);
        Ok(())
    }
}

/// Return the number of partitions of removed owners that other nodes get without a handoff.
fn taken_over(plan: &Plan) -> usize {
    let gone = plan.nodes.iter().filter(|share| share.becomes == MemberStatus::Removed);
    let handed = |node: NodeId| plan.moves.iter().filter(|one| one.owner && one.from == node).count();
    gone.map(|share| share.now.owned.saturating_sub(handed(share.node))).sum()
}

fn is_up_still(name: &str) -> AdminError {
    let message = format!(
        "{name} is up: `annulus leave {name}` hands off its partitions; only a node that is gone for good is removed"
    );
    AdminError::not_applied("not-allowed", message)
}

/// Return the id of the member with this name that is not removed.
pub(super) fn by_name(view: &View, name: &str) -> Result<NodeId, AdminError> {
    let member = view.state.member_by_name(name);
    Ok(member.ok_or_else(|| Refusal::NotMember(name.to_owned()))?.id)
}

/// Return the name of a node, even if it was removed.
fn name(view: &View, node: NodeId) -> String {
    view.state.members.get(&node).map_or_else(|| format!("node {node}"), |member| member.name.clone())
}

pub(super) fn word(change: &Change) -> &'static str {
    match change {
        Change::Join { .. } => "join",
        Change::Leave { .. } => "leave",
        Change::Replace { .. } => "replace",
        Change::Remove { .. } => "remove",
    }
}

fn change_rows(view: &View, changes: &[Change]) -> Vec<ChangeRow> {
    let row = |change: &Change| ChangeRow {
        change: word(change).to_owned(),
        node: name(view, change.node()),
        by: match change {
            Change::Replace { new, .. } => Some(name(view, *new)),
            _ => None,
        },
    };
    changes.iter().map(row).collect()
}

fn rows(view: &View, plan: &Plan, held: &BTreeMap<PartitionId, PartitionSize>) -> PlanRow {
    // Only owners hold items in this version, so a move to a further replica carries none.
    let amount = |partition: PartitionId, owner: bool| -> Amount {
        if !owner {
            return Some((0, 0));
        }
        held.get(&partition).map(|held| (held.items, held.bytes))
    };
    let sum = |of: &dyn Fn(&annulus_core::state::Move) -> bool| -> Amount {
        plan.moves.iter().filter(|one| of(one)).try_fold((0, 0), |(items, bytes), one| {
            amount(one.partition, one.owner).map(|(more, size)| (items + more, bytes + size))
        })
    };
    let share = |share: &annulus_core::state::Share| {
        let (comes, goes) = (sum(&|one| one.to == share.node), sum(&|one| one.from == share.node));
        let status = view.state.members.get(&share.node).map(|member| member.status);
        ShareRow {
            node: name(view, share.node),
            status: status.map_or_else(String::new, |status| status.to_string()),
            becomes: share.becomes.to_string(),
            owned: share.now.owned,
            will_own: share.then.owned,
            replicas: share.now.replicas,
            will_hold: share.then.replicas,
            items_in: comes.map(|(items, _)| items),
            bytes_in: comes.map(|(_, bytes)| bytes),
            items_out: goes.map(|(items, _)| items),
            bytes_out: goes.map(|(_, bytes)| bytes),
        }
    };
    let moved = |one: &annulus_core::state::Move| {
        let amount = amount(one.partition, one.owner);
        MoveRow {
            partition: one.partition.0,
            from: name(view, one.from),
            to: name(view, one.to),
            owner: one.owner,
            under_way: one.under_way,
            items: amount.map(|(items, _)| items),
            bytes: amount.map(|(_, bytes)| bytes),
        }
    };
    PlanRow {
        plan: Some(plan.id()),
        epoch: plan.base,
        changes: change_rows(view, &plan.changes),
        nodes: plan.nodes.iter().map(share).collect(),
        moves: plan.moves.iter().map(moved).collect(),
        warnings: plan
            .warnings
            .iter()
            .map(|warning| WarningRow { code: warning.code().to_owned(), message: warning.to_string() })
            .collect(),
        shown: None,
    }
}
