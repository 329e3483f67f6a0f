//! Planned changes of the membership: staged, then committed as one.
//!
//! The entry contains the table, so that the committed change is the one that was shown. An entry changes the
//! members, drops removed ones from every set and aims the ring at the table, or it is refused and changes nothing. A
//! removed node cannot hand over its partitions (R1, R3): the next node of the set owns the partition at once, or the
//! node that the table names if none is left, and the partition is recorded as a possible loss.

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::keyspace::PartitionId;

use super::apply::wrong_status;
use super::{ClusterState, Member, MemberStatus, Outcome, Refusal};

/// One change of the membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// A node that was admitted to wait for a plan becomes a member.
    Join {
        /// The node.
        node: NodeId,
    },
    /// A node hands off its partitions, then is removed.
    Leave {
        /// The node.
        node: NodeId,
    },
    /// `new`, which holds nothing, replaces `old` in every set. `old` hands its partitions over and is removed; if it
    /// is marked down, it is removed at once and its items are lost.
    Replace {
        /// The node that goes.
        old: NodeId,
        /// The node that comes.
        new: NodeId,
    },
    /// A dead node is banned at once, and removed from every set.
    Remove {
        /// The node.
        node: NodeId,
    },
}

impl Change {
    /// Return the nodes that the change names.
    pub fn nodes(&self) -> Vec<NodeId> {
        match *self {
            Self::Join { node } | Self::Leave { node } | Self::Remove { node } => vec![node],
            Self::Replace { old, new } => vec![old, new],
        }
    }
}

/// A possible loss of a partition's items: with an owner that was removed, has started again or was lost at a
/// recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The owner.
    pub node: NodeId,
    /// The owner's name, which another node may have by now.
    pub name: String,
    /// The log index of the entry that removed the owner, of the recovery, or of the owner's report.
    pub index: u64,
}

impl ClusterState {
    pub(super) fn stage(&mut self, index: u64, change: Change) -> Result<Outcome, Refusal> {
        if self.staged.contains(&change) {
            return Ok(Outcome::Done);
        }
        // A refusal of the change alone is the clearer reason, so it comes first.
        self.clone().change_members(&[change])?;
        let mut changes = self.staged.clone();
        changes.push(change);
        self.clone().change_members(&changes).map_err(|refusal| Refusal::Conflict(Box::new(refusal)))?;
        (self.staged, self.stage_version) = (changes, index);
        Ok(Outcome::Done)
    }

    pub(super) fn clear_staged(&mut self, index: u64) -> Outcome {
        if !self.staged.is_empty() {
            self.staged.clear();
            self.stage_version = index;
        }
        Outcome::Done
    }

    pub(super) fn commit(
        &mut self,
        index: u64,
        stage: u64,
        base: u64,
        table: &[Vec<NodeId>],
    ) -> Result<Outcome, Refusal> {
        if self.staged.is_empty() {
            return Err(Refusal::NothingStaged);
        }
        if (stage, base) != (self.stage_version, self.ring.epoch) {
            return Err(Refusal::PlanChanged);
        }
        let mut next = self.carried_out(index, &self.staged, table)?;
        next.clear_staged(index);
        *self = next;
        Ok(Outcome::Done)
    }

    pub(super) fn change_at_once(
        &mut self,
        index: u64,
        change: Change,
        (base, down): (u64, Option<bool>),
        table: &[Vec<NodeId>],
    ) -> Result<Outcome, Refusal> {
        if base != self.ring.epoch || down.is_some_and(|down| down != self.is_of_one_down(change)) {
            return Err(Refusal::RingChanged);
        }
        *self = self.carried_out(index, &[change], table)?;
        Ok(Outcome::Done)
    }

    /// Apply these changes to the state, with the ring aimed at the table.
    pub(super) fn carried_out(
        &self,
        index: u64,
        changes: &[Change],
        table: &[Vec<NodeId>],
    ) -> Result<ClusterState, Refusal> {
        let mut next = self.clone();
        next.change_members(changes)?;
        // Check against the sets before the change: a set that becomes empty below becomes the table's at once.
        next.check_table(table)?;
        next.check_steps(table)?;
        if let Some(gone) = table.iter().flatten().find(|node| next.member(**node).is_none()) {
            return Err(Refusal::BadTable(format!("node {gone} is not a member")));
        }
        next.drop_removed(index, table);
        next.aim(index, table);
        Ok(next)
    }

    /// Apply the changes to the members, one after the other.
    pub(super) fn change_members(&mut self, changes: &[Change]) -> Result<(), Refusal> {
        changes.iter().try_for_each(|change| match *change {
            Change::Join { node } => self.take_in(node),
            Change::Leave { node } => self.start_leave(node),
            Change::Replace { old, new } => self.replace(old, new),
            Change::Remove { node } => self.ban(node),
        })
    }

    fn take_in(&mut self, node: NodeId) -> Result<(), Refusal> {
        let member = self.live_member_mut(node)?;
        if member.status != MemberStatus::Joining {
            return Err(wrong_status(member));
        }
        (member.status, member.staged) = (MemberStatus::Member, false);
        Ok(())
    }

    fn start_leave(&mut self, node: NodeId) -> Result<(), Refusal> {
        let last = !self.has_member_besides(node);
        let member = self.live_member_mut(node)?;
        match member.status {
            MemberStatus::Member if last => return Err(Refusal::LastMember),
            // A joining node holds nothing, so once it is `leaving` it is removed without a handoff.
            MemberStatus::Member | MemberStatus::Joining => member.status = MemberStatus::Leaving,
            _ => return Err(wrong_status(member)),
        }
        Ok(())
    }

    fn replace(&mut self, old: NodeId, new: NodeId) -> Result<(), Refusal> {
        if old == new {
            return Err(Refusal::BadSetting("a node cannot replace itself".into()));
        }
        let holds = self.holds(new);
        let comer = self.live_member_mut(new)?;
        match comer.status {
            MemberStatus::Member | MemberStatus::Joining if holds => {
                return Err(Refusal::NotEmpty(comer.name.clone()));
            }
            MemberStatus::Member => {}
            MemberStatus::Joining => (comer.status, comer.staged) = (MemberStatus::Member, false),
            _ => return Err(wrong_status(comer)),
        }
        match self.live_member_mut(old)?.status {
            MemberStatus::Down => self.ban(old),
            MemberStatus::Joining => Err(wrong_status(self.live_member_mut(old)?)),
            _ => self.start_leave(old),
        }
    }

    fn ban(&mut self, node: NodeId) -> Result<(), Refusal> {
        let last = !self.has_member_besides(node);
        let member = self.live_member_mut(node)?;
        if last {
            return Err(Refusal::LastMember);
        }
        (member.status, member.staged, member.banned) = (MemberStatus::Removed, false, true);
        Ok(())
    }

    /// Return true if another node has the status `member`.
    fn has_member_besides(&self, node: NodeId) -> bool {
        self.live_members().any(|member| member.id != node && member.status == MemberStatus::Member)
    }

    /// Drop removed nodes from every set. A transfer of another node continues, unless its target has one of them.
    fn drop_removed(&mut self, index: u64, table: &[Vec<NodeId>]) {
        let gone = |node: &NodeId| self.members.get(node).is_none_or(|member| !member.is_live());
        let single = self.modules.values().any(|module| module.n == 1);
        let counts_drops = self.counts_drops();
        let mut lost = Vec::new();
        for ((id, target), partition) in
            self.ring.size.partitions().zip(table).zip(self.ring.partitions.iter_mut())
        {
            let owner = partition.owner();
            let aims_at_gone =
                partition.pending.as_ref().is_some_and(|pending| pending.target.iter().any(gone));
            if gone(&owner) || aims_at_gone {
                // Its sender is removed, or its target has a removed node: the transfer starts again under another
                // id.
                if partition.pending.take().is_some() && counts_drops {
                    partition.dropped = index;
                }
                self.ring.epoch = index;
            }
            let mut is_last = false;
            if partition.replicas.iter().any(gone) {
                partition.replicas.retain(|node| !gone(node));
                is_last = partition.replicas.is_empty();
                if is_last {
                    partition.replicas.clone_from(target);
                }
                partition.version = index;
                self.ring.epoch = index;
            }
            // The others of the set have what modules with several replicas had.
            if gone(&owner) && (single || is_last) {
                lost.push((id, owner));
            }
        }
        // Without modules no items exist that could be lost.
        if !self.modules.is_empty() {
            for (id, node) in lost {
                let name = self.members.get(&node).map(|member| member.name.clone()).unwrap_or_default();
                self.losses.insert(id, Loss { node, name, index });
            }
        }
    }

    /// Drop staged changes that have become impossible because their node has left or joined in another way.
    pub(super) fn drop_stale_changes(&mut self, index: u64) {
        if self.staged.is_empty() {
            return;
        }
        let mut next = self.clone();
        let before = self.staged.len();
        self.staged.retain(|change| {
            // A refused change may have been carried out in part, so it is tried on a copy.
            let mut tried = next.clone();
            let fits = tried.change_members(&[*change]).is_ok();
            if fits {
                next = tried;
            }
            fits
        });
        if self.staged.len() != before {
            self.stage_version = index;
        }
    }

    pub(super) fn down(&mut self, index: u64, node: NodeId) -> Result<Outcome, Refusal> {
        let last = !self.has_member_besides(node);
        let member = self.live_member_mut(node)?;
        match member.status {
            MemberStatus::Down => {}
            MemberStatus::Member if last => return Err(Refusal::LastMember),
            MemberStatus::Member => {
                member.status = MemberStatus::Down;
                self.marked(index, node);
            }
            _ => return Err(wrong_status(member)),
        }
        Ok(Outcome::Done)
    }

    pub(super) fn up(&mut self, index: u64, node: NodeId) -> Result<Outcome, Refusal> {
        let member = self.live_member_mut(node)?;
        match member.status {
            MemberStatus::Member => {}
            MemberStatus::Down => {
                member.status = MemberStatus::Member;
                self.marked(index, node);
            }
            _ => return Err(wrong_status(member)),
        }
        Ok(Outcome::Done)
    }

    /// Return true if the node that leaves the cluster by this change is marked as down.
    pub fn is_of_one_down(&self, change: Change) -> bool {
        let goes = match change {
            Change::Join { .. } => return false,
            Change::Leave { node } | Change::Remove { node } | Change::Replace { old: node, .. } => node,
        };
        self.member(goes).is_some_and(|member| member.status == MemberStatus::Down)
    }

    /// Record that the down mark of a node has changed. The replacement of a node that is down removes it; otherwise
    /// the node hands its partitions over. A plan that was shown as one must not be committed as the other.
    fn marked(&mut self, index: u64, node: NodeId) {
        let replaces = |change: &Change| matches!(change, Change::Replace { old, .. } if *old == node);
        if self.level >= 3 && self.staged.iter().any(replaces) {
            self.stage_version = index;
        }
    }

    pub(super) fn lost(
        &mut self,
        index: u64,
        node: NodeId,
        partitions: &[PartitionId],
    ) -> Result<Outcome, Refusal> {
        let name = self.live_member_mut(node)?.name.clone();
        for partition in partitions.iter().filter(|one| u32::from(one.0) < u32::from(self.ring.size)) {
            self.losses.insert(*partition, Loss { node, name: name.clone(), index });
        }
        Ok(Outcome::Done)
    }

    pub(super) fn placed(
        &mut self,
        node: NodeId,
        zone: Option<&String>,
        weight: Option<u32>,
    ) -> Result<Outcome, Refusal> {
        if weight == Some(0) {
            return Err(Refusal::BadSetting("a node's weight is at least 1".into()));
        }
        let member = self.live_member_mut(node)?;
        if let Some(zone) = zone {
            member.zone = Some(zone.clone());
        }
        member.weight = weight.unwrap_or(member.weight);
        Ok(Outcome::Done)
    }
}

impl Change {
    /// Return the node that the change is about; for a replacement, the node that is replaced.
    pub fn node(&self) -> NodeId {
        match *self {
            Self::Join { node } | Self::Leave { node } | Self::Remove { node } => node,
            Self::Replace { old, .. } => old,
        }
    }

    /// Return the change in the words of the command line.
    pub fn text(&self, name: impl Fn(NodeId) -> String) -> String {
        match *self {
            Self::Join { node } => format!("join {}", name(node)),
            Self::Leave { node } => format!("leave {}", name(node)),
            Self::Replace { old, new } => format!("replace {} {}", name(old), name(new)),
            Self::Remove { node } => format!("remove {}", name(node)),
        }
    }
}

impl Member {
    /// Return true if the node waits for a plan.
    pub fn waits(&self) -> bool {
        self.staged && self.status == MemberStatus::Joining
    }
}
