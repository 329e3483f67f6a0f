//! Applies the entries of the log to the state.
//!
//! The result is a pure function of state, index and command: the same log gives the same state on every node. An
//! entry is either carried out as a whole, or refused and changes nothing but `applied` (a `Flip` separately for each
//! of its transfers). A command that a proposer may safely repeat, because it has not learned the outcome, returns
//! `Done` again.

use crate::ids::{ClusterId, ModuleUid, NodeId, TransferId};
use crate::keyspace::{PartitionId, RingSize};
use crate::mutants::{self, Mutant};
use crate::ring::{Partition, RingTable, Transfer};

use super::level::first_level;
use super::{ClusterState, Command, Lineage, Machine, Member, MemberStatus, Outcome, Refusal};

/// The largest number of replicas in a table (R4).
pub const MAX_WIDTH: u8 = 7;

impl Machine {
    /// Apply the entry at `index`, which must be larger than that of the previous entry.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        match (&mut self.state, command) {
            (Some(state), command) => state.apply(index, command),
            (
                none,
                Command::Found { cluster, ring_size, width, founder, authority, authority_key, level },
            ) => match found(index, *cluster, *ring_size, *width, founder) {
                Ok(mut state) => {
                    state.authorities.push(authority.clone());
                    state.authority_key.clone_from(authority_key);
                    state.level = *level;
                    state.drop_authority_key();
                    *none = Some(state);
                    Outcome::Done
                }
                Err(refusal) => Outcome::Refused(refusal),
            },
            (None, _) => Outcome::Refused(Refusal::Founding),
        }
    }
}

/// Return a single-node cluster; its node holds every partition.
fn found(
    index: u64,
    cluster: ClusterId,
    size: RingSize,
    width: u8,
    founder: &Member,
) -> Result<ClusterState, Refusal> {
    if !(1..=MAX_WIDTH).contains(&width) {
        return Err(Refusal::BadSetting(format!("the ring's width is from 1 to {MAX_WIDTH}, not {width}")));
    }
    check_member(founder)?;
    let id = NodeId(0);
    let partition = Partition::held_by(vec![id], index);
    let ring = RingTable { size, epoch: index, partitions: vec![partition; usize::from(size.get())] };
    let founder =
        Member { id, status: MemberStatus::Member, staged: false, banned: false, ..founder.clone() };
    Ok(ClusterState {
        cluster,
        lineage: Lineage::default(),
        applied: index,
        width,
        members: [(id, founder)].into(),
        ring,
        modules: Default::default(),
        authorities: Vec::new(),
        authority_key: String::new(),
        tokens: Default::default(),
        token_uses: Default::default(),
        staged: Vec::new(),
        stage_version: 0,
        losses: Default::default(),
        handoff: Default::default(),
        level: first_level(),
    })
}

/// Return true if a command may make a staged change impossible. Frequent commands cannot, and are excluded to save the
/// check: a flip brings no partition to a node that it was not aimed at.
fn may_unfit_a_plan(command: &Command) -> bool {
    !matches!(
        command,
        Command::Flip { .. }
            | Command::Cancel { .. }
            | Command::IssueToken { .. }
            | Command::Moved { .. }
            | Command::Arrived { .. }
    )
}

pub(super) fn check_member(member: &Member) -> Result<(), Refusal> {
    if member.name.is_empty() {
        return Err(Refusal::BadSetting("a node needs a name".into()));
    }
    if member.weight == 0 {
        return Err(Refusal::BadSetting("a node's weight is at least 1".into()));
    }
    Ok(())
}

impl ClusterState {
    /// Apply the entry at `index`, which must be larger than that of the previous entry.
    pub fn apply(&mut self, index: u64, command: &Command) -> Outcome {
        debug_assert!(index > self.applied, "entry {index} applied after {}", self.applied);
        self.applied = index;
        let outcome = self.change(index, command).unwrap_or_else(Outcome::Refused);
        if may_unfit_a_plan(command) {
            self.drop_stale_changes(index);
        }
        self.check();
        outcome
    }

    fn change(&mut self, index: u64, command: &Command) -> Result<Outcome, Refusal> {
        self.check_level(command)?;
        match command {
            Command::Raise { level, known } => self.raise(*level, known),
            Command::Found { .. } => Err(Refusal::Founding),
            Command::IssueToken { token, now_ms, expires_ms, uses } => {
                self.issue_token(*token, *now_ms, *expires_ms, *uses)
            }
            Command::Admit { member, token, now_ms } => self.admit(index, member, token, *now_ms),
            Command::Joined { node } => self.joined(*node),
            Command::Leave { node } => self.leave(*node),
            Command::Removed { node } => self.removed(*node),
            Command::Rebalance { base, table } => self.rebalance(index, *base, table),
            Command::Flip { transfers } => Ok(self.flip(index, transfers)),
            Command::Cancel { partition, transfer } => self.cancel(index, *partition, *transfer),
            Command::Deploy { name, n, r, w, sloppy, storage, config, release, base_version } => {
                let settings = super::deploy::Settings {
                    n: *n,
                    r: *r,
                    w: *w,
                    sloppy: *sloppy,
                    storage: *storage,
                    config: config.as_deref(),
                };
                self.deploy(index, name, &settings, release, *base_version)
            }
            Command::Rollback { name, base, to } => self.rollback(index, name, *base, *to),
            Command::Undeploy { name, base } => self.undeploy(name, *base),
            Command::Moved { node, listen, http } => {
                let member = self.live_member_mut(*node)?;
                member.listen.clone_from(listen);
                member.http.clone_from(http);
                Ok(Outcome::Done)
            }
            Command::Stage { change } => self.stage(index, *change),
            Command::ClearStaged => Ok(self.clear_staged(index)),
            Command::Commit { stage, base, table } => self.commit(index, *stage, *base, table),
            Command::Change { change, base, table, down } => {
                self.change_at_once(index, *change, (*base, *down), table)
            }
            Command::Lost { node, partitions } => self.lost(index, *node, partitions),
            Command::Down { node } => self.down(index, *node),
            Command::Up { node } => self.up(index, *node),
            Command::Placed { node, zone, weight } => self.placed(*node, zone.as_ref(), *weight),
            Command::Acknowledge { up_to } => {
                self.losses.retain(|_, loss| loss.index > *up_to);
                Ok(Outcome::Done)
            }
            Command::SetHandoff { node, changes } => self.set_handoff(*node, changes),
            Command::Arrived { node, arrivals } => self.arrived(*node, arrivals),
        }
    }

    fn joined(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        let member = self.live_member_mut(node)?;
        match member.status {
            MemberStatus::Joining if member.staged => return Err(Refusal::Waits(member.name.clone())),
            MemberStatus::Joining | MemberStatus::Member => member.status = MemberStatus::Member,
            _ => return Err(wrong_status(member)),
        }
        Ok(Outcome::Done)
    }

    fn leave(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        let others = self.live_members().any(|m| m.id != node && m.status == MemberStatus::Member);
        let member = self.live_member_mut(node)?;
        match member.status {
            MemberStatus::Leaving => {}
            MemberStatus::Member if others => member.status = MemberStatus::Leaving,
            MemberStatus::Member => return Err(Refusal::LastMember),
            _ => return Err(wrong_status(member)),
        }
        Ok(Outcome::Done)
    }

    fn removed(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        let holds = self.holds(node);
        let member = self.members.get_mut(&node).ok_or_else(|| Refusal::NotMember(node.to_string()))?;
        match member.status {
            MemberStatus::Removed => {}
            MemberStatus::Leaving | MemberStatus::Joining if holds => {
                return Err(Refusal::Holding(member.name.clone()));
            }
            MemberStatus::Leaving | MemberStatus::Joining => member.status = MemberStatus::Removed,
            _ => return Err(wrong_status(member)),
        }
        Ok(Outcome::Done)
    }

    fn rebalance(&mut self, index: u64, base: u64, table: &[Vec<NodeId>]) -> Result<Outcome, Refusal> {
        if base != self.ring.epoch && !mutants::on(Mutant::RebalanceWithoutBase) {
            return Err(Refusal::RingChanged);
        }
        self.check_table(table)?;
        self.check_steps(table)?;
        self.aim(index, table);
        Ok(Outcome::Done)
    }

    /// Aim the ring at a table that has been checked.
    pub(super) fn aim(&mut self, index: u64, table: &[Vec<NodeId>]) {
        let counts_drops = self.counts_drops();
        for (partition, target) in self.ring.partitions.iter_mut().zip(table) {
            let pending = partition.pending.as_ref().map(|transfer| &transfer.target);
            let change = if partition.replicas == *target {
                pending.is_some().then_some(None)
            } else if pending == Some(target) {
                None
            } else {
                Some(Some(Transfer::new(TransferId(index), target.clone())))
            };
            if let Some(pending) = change {
                if pending.is_none() && counts_drops {
                    partition.dropped = index;
                }
                partition.pending = pending;
                self.ring.epoch = index;
            }
        }
    }

    /// Check a replica set: distinct live members, no more than the ring's width, and each new one able to receive. A
    /// set that is in place already passes, whatever the status of its nodes.
    pub(super) fn check_table(&self, table: &[Vec<NodeId>]) -> Result<(), Refusal> {
        let bad = |why: String| Err(Refusal::BadTable(why));
        if table.len() != self.ring.partitions.len() {
            return bad(format!("{} partitions, not {}", table.len(), self.ring.partitions.len()));
        }
        for ((id, partition), target) in self.ring.iter().zip(table) {
            if *target == partition.replicas
                || partition.pending.as_ref().is_some_and(|p| p.target == *target)
            {
                continue;
            }
            if target.is_empty() || target.len() > usize::from(self.width) {
                return bad(format!("{} replicas of partition {}", target.len(), id.0));
            }
            for (at, node) in target.iter().enumerate() {
                if target[..at].contains(node) {
                    return bad(format!("node {node} twice in partition {}", id.0));
                }
                match self.member(*node) {
                    None => return bad(format!("node {node} is not a member")),
                    Some(member) if !member.may_hold() && !partition.replicas.contains(node) => {
                        return bad(format!(
                            "{} is {} and cannot take partition {}",
                            member.name, member.status, id.0
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    fn flip(&mut self, index: u64, transfers: &[(PartitionId, TransferId)]) -> Outcome {
        let mut flipped = Vec::with_capacity(transfers.len());
        for (id, transfer) in transfers {
            // Every module moves, or none does (R4).
            if !self.ring.get(*id).is_some_and(|partition| self.has_arrived(partition)) {
                continue;
            }
            let Some(partition) = self.ring.partitions.get_mut(usize::from(id.0)) else { continue };
            let is_it =
                |pending: &mut Transfer| pending.id == *transfer || mutants::on(Mutant::FlipTheCancelled);
            if let Some(done) = partition.pending.take_if(is_it) {
                partition.replicas = done.target;
                partition.made_by = *transfer;
                partition.version = index;
                self.ring.epoch = index;
                flipped.push((*id, *transfer));
            }
        }
        Outcome::Flipped(flipped)
    }

    /// Note that a node has the items of modules with several replicas. What is of a transfer that is not, or no longer,
    /// pending is ignored.
    fn arrived(
        &mut self,
        node: NodeId,
        arrivals: &[(PartitionId, TransferId, ModuleUid)],
    ) -> Result<Outcome, Refusal> {
        self.live_member_mut(node)?;
        for (id, transfer, module) in arrivals {
            let n = self.modules.get(module).map_or(0, |module| usize::from(module.n));
            let Some(partition) = self.ring.get(*id) else { continue };
            let reports = self.reporters(partition, n).any(|reporter| reporter == node);
            let partition = self.ring.partitions.get_mut(usize::from(id.0));
            if let Some(pending) = partition.and_then(|partition| partition.pending.as_mut())
                && pending.id == *transfer
                && reports
            {
                pending.arrived.insert((*module, node));
            }
        }
        Ok(Outcome::Done)
    }

    fn cancel(&mut self, index: u64, id: PartitionId, transfer: TransferId) -> Result<Outcome, Refusal> {
        let pending = self.ring.partitions.get_mut(usize::from(id.0)).and_then(|p| p.pending.as_mut());
        let pending =
            pending.filter(|pending| pending.id == transfer).ok_or(Refusal::NotPending(transfer))?;
        *pending = Transfer::new(TransferId(index), std::mem::take(&mut pending.target));
        self.ring.epoch = index;
        Ok(Outcome::Done)
    }

    pub(super) fn live_member_mut(&mut self, node: NodeId) -> Result<&mut Member, Refusal> {
        let live = self.members.get_mut(&node).filter(|member| member.is_live());
        live.ok_or_else(|| Refusal::NotMember(node.to_string()))
    }
}

pub(super) fn wrong_status(member: &Member) -> Refusal {
    Refusal::Status { node: member.name.clone(), status: member.status.to_string() }
}
