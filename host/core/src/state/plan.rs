//! The effect of a set of changes before it is committed: the table, each node's gain and loss, the moves, and
//! warnings.
//!
//! The plan is a pure function of the state. The entry contains the computed table, so that the committed change is
//! the one that was shown. Several changes are one rebalancing.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{NodeId, TransferId};
use crate::keyspace::PartitionId;
use crate::ring::pairs::pairs;
use crate::ring::{Partition, RingTable, Transfer};

use super::{Change, ClusterState, MemberStatus, Refusal};

/// A node's share of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The number of partitions that it owns.
    pub owned: usize,
    /// The number of partitions of which it holds a replica, owned ones included.
    pub replicas: usize,
}

/// One node before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The node.
    pub node: NodeId,
    /// The present share.
    pub now: Load,
    /// The share once everything has moved.
    pub then: Load,
    /// The status once the plan is committed.
    pub becomes: MemberStatus,
}

/// One node that becomes the owner, or a further replica, of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub partition: PartitionId,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// Whether the receiver becomes the owner; otherwise it becomes a further replica.
    pub owner: bool,
    /// Whether the transfer is pending already, and not restarted by the plan.
    pub under_way: bool,
}

/// A warning to an operator before a commit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// The items of these partitions are lost with their owner.
    #[error(
        "the only copy of {partitions} partitions is lost with {node} (modules with n=1: {modules}); \
         `leave` keeps it, if the node can still be started"
    )]
    Loses {
        /// The name of the removed node.
        node: String,
        /// The number of partitions that it owns.
        partitions: usize,
        /// The names of the modules.
        modules: String,
    },
    /// The ring has fewer nodes than a replica set should have.
    #[error("{nodes} nodes hold the ring: sets of {width} replicas cannot be filled")]
    FewNodes {
        /// The number of nodes.
        nodes: usize,
        /// The number of nodes that a set should have.
        width: u8,
    },
    /// The nodes are in too few zones for sets without two nodes of one zone.
    #[error("{partitions} partitions have two replicas in one zone: there are only {zones} zones")]
    FewZones {
        /// The number of partitions.
        partitions: usize,
        /// The number of zones, a node without one counting as one.
        zones: usize,
    },
    /// A node that is down must send or receive.
    #[error("{node} is down: {moves} moves wait until it is back")]
    Away {
        /// The name of the node.
        node: String,
        /// The number of its moves.
        moves: usize,
    },
    /// A node that joined to wait for a plan is not part of this plan.
    #[error("{0} waits to join and is not part of this plan; say join --stage to it again")]
    Waits(String),
}

impl Warning {
    /// Return a stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Loses { .. } => "possible-loss",
            Self::FewNodes { .. } => "too-few-nodes",
            Self::FewZones { .. } => "too-few-zones",
            Self::Away { .. } => "node-down",
            Self::Waits(_) => "joiner-waits",
        }
    }
}

/// The effect of a set of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The `stage_version` of the state that it was made from.
    pub stage: u64,
    /// The ring's epoch that it was made from.
    pub base: u64,
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// The table that the ring is aimed at.
    pub table: Vec<Vec<NodeId>>,
    /// Every node before or after, by id.
    pub nodes: Vec<Share>,
    /// The moves, by partition.
    pub moves: Vec<Move>,
    /// The warnings.
    pub warnings: Vec<Warning>,
}

/// Return the effect of these changes on the state.
///
/// # Errors
/// The reason why a change is not possible after those before it.
pub fn plan(state: &ClusterState, changes: &[Change]) -> Result<Plan, Refusal> {
    let mut members = state.clone();
    members.change_members(changes)?;
    let table = members.table_from(&with_replacements(&state.ring, changes), &state.ring);
    let after = state.carried_out(state.applied + 1, changes, &table)?;
    let nodes = shares(state, &after, &table);
    let moves = moves(state, &after);
    let warnings = warnings(state, &after, &table);
    let (stage, base, changes) = (state.stage_version, state.ring.epoch, changes.to_vec());
    Ok(Plan { stage, base, changes, table, nodes, moves, warnings })
}

/// Return the ring with each replaced node's places given to its replacement already, as the starting point of the
/// claim.
fn with_replacements(ring: &RingTable, changes: &[Change]) -> RingTable {
    let mut ring = ring.clone();
    for change in changes {
        let Change::Replace { old, new } = *change else { continue };
        for partition in &mut ring.partitions {
            let aimed = match &mut partition.pending {
                Some(pending) => &mut pending.target,
                None => &mut partition.replicas,
            };
            aimed.iter_mut().filter(|node| **node == old).for_each(|node| *node = new);
        }
    }
    ring
}

fn shares(state: &ClusterState, after: &ClusterState, table: &[Vec<NodeId>]) -> Vec<Share> {
    let now = loads(state.ring.partitions.iter().map(|partition| &partition.replicas[..]));
    let then = loads(table.iter().map(Vec::as_slice));
    let load = |loads: &BTreeMap<NodeId, Load>, node| loads.get(&node).copied().unwrap_or_default();
    let becomes = |node| after.members.get(&node).map_or(MemberStatus::Removed, |member| member.status);
    let share = |node| Share { node, now: load(&now, node), then: load(&then, node), becomes: becomes(node) };
    state.live_members().map(|member| share(member.id)).collect()
}

fn loads<'a>(sets: impl Iterator<Item = &'a [NodeId]>) -> BTreeMap<NodeId, Load> {
    let mut loads: BTreeMap<NodeId, Load> = BTreeMap::new();
    for set in sets {
        for (place, node) in set.iter().enumerate() {
            let load = loads.entry(*node).or_default();
            load.replicas += 1;
            load.owned += usize::from(place == 0);
        }
    }
    loads
}

fn moves(before: &ClusterState, after: &ClusterState) -> Vec<Move> {
    let mut moves = Vec::new();
    for (partition, transfer) in after.ring.transfers() {
        let under_way = before.is_pending(partition, transfer.id);
        let (old, new) = (&after.ring.partition(partition).replicas, &transfer.target);
        let mut push = |from, to, owner| moves.push(Move { partition, from, to, owner, under_way });
        let owner = (old[0] != new[0]).then_some(new[0]);
        if let Some(to) = owner {
            push(old[0], to, true);
        }
        for pair in pairs(old, new, new.len().max(old.len())) {
            if Some(pair.to) != owner && !old.contains(&pair.to) {
                push(pair.from, pair.to, false);
            }
        }
    }
    moves
}

fn warnings(before: &ClusterState, after: &ClusterState, table: &[Vec<NodeId>]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let removed = before
        .live_members()
        .filter(|member| after.members.get(&member.id).is_some_and(|after| after.banned));
    for member in removed {
        let owned = before.ring.owned_by(member.id).count();
        let single = before.modules.values().filter(|module| module.n == 1);
        let modules: Vec<&str> = single.map(|module| module.name.as_str()).collect();
        if owned > 0 && !modules.is_empty() {
            let (node, modules) = (member.name.clone(), modules.join(", "));
            warnings.push(Warning::Loses { node, partitions: owned, modules });
        }
    }
    let nodes = after.claim_nodes();
    if nodes.len() < usize::from(after.width) {
        warnings.push(Warning::FewNodes { nodes: nodes.len(), width: after.width });
    }
    let zone = |node: &NodeId| after.member(*node).and_then(|member| member.zone.as_deref());
    let repeats = |set: &&Vec<NodeId>| {
        set.iter()
            .enumerate()
            .any(|(at, node)| zone(node).is_some() && set[..at].iter().any(|other| zone(other) == zone(node)))
    };
    let partitions = table.iter().filter(repeats).count();
    if partitions > 0 {
        let mut named: Vec<&str> = nodes.iter().filter_map(|node| node.zone.as_deref()).collect();
        named.sort_unstable();
        named.dedup();
        let zones = named.len() + nodes.iter().filter(|node| node.zone.is_none()).count();
        warnings.push(Warning::FewZones { partitions, zones });
    }
    warnings.extend(
        after
            .live_members()
            .filter(|member| member.waits())
            .map(|member| Warning::Waits(member.name.clone())),
    );
    warnings
}

impl Plan {
    /// Add a warning for each node that must send, receive or report and is down, by its status or by the caller's view.
    pub fn warn_of_the_away(&mut self, state: &ClusterState, is_up: impl Fn(NodeId) -> bool) {
        let moved = |((_, partition), target): &((PartitionId, &Partition), &Vec<NodeId>)| {
            partition.target() != *target
        };
        let pending: Vec<(PartitionId, Partition)> = (state.ring.iter().zip(&self.table).filter(moved))
            .map(|((id, partition), target)| {
                let pending = Some(Transfer::new(TransferId(0), target.clone()));
                (id, Partition { pending, ..partition.clone() })
            })
            .collect();
        for member in state.live_members() {
            let takes_part = |one: &&Move| one.from == member.id || one.to == member.id;
            let items = self.moves.iter().filter(takes_part).map(|one| one.partition);
            let reports = pending
                .iter()
                .filter(|(_, partition)| state.awaited(partition).any(|(_, node)| node == member.id));
            let moves = items.chain(reports.map(|(id, _)| *id)).collect::<BTreeSet<_>>().len();
            if moves > 0 && (member.status == MemberStatus::Down || !is_up(member.id)) {
                self.warnings.push(Warning::Away { node: member.name.clone(), moves });
            }
        }
    }

    /// Return a digest of the plan's effect. It stays the same as long as the effect does, whatever else changes in
    /// the ring.
    pub fn id(&self) -> String {
        use sha2::Digest as _;
        let mut hash = sha2::Sha256::new();
        hash.update(self.stage.to_be_bytes());
        for set in &self.table {
            hash.update((set.len() as u64).to_be_bytes());
            set.iter().for_each(|node| hash.update(node.0.to_be_bytes()));
        }
        // The same table may be reached by a hand-over or by force.
        for share in &self.nodes {
            hash.update(share.node.0.to_be_bytes());
            hash.update(share.becomes.to_string());
        }
        hash.finalize()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
