//! The oracle of cluster states (R1, R2): all nodes show the same state of a log entry, and only the owner of a
//! partition serves it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use annulus_core::codec;
use annulus_core::ids::{ClusterId, ModuleUid, NodeId};
use annulus_core::keyspace::PartitionId;
use annulus_core::role::REPLICAS;
use annulus_core::state::{ClusterState, Lineage, Member};
use sha2::{Digest as _, Sha256};

use super::counts::{self, Flip};
use crate::rule::{Broken, Rule};

/// The states that nodes have shown.
#[derive(Default)]
pub struct Ledger {
    /// Digests of the states, by cluster, lineage and index of the last applied entry.
    shown: BTreeMap<(ClusterId, Lineage, u64), [u8; 32]>,
    /// The cluster of the run: the first that was shown. Nodes that have not joined yet show others.
    cluster: Option<ClusterId>,
    newest: Option<ClusterState>,
}

/// The changes from the newest state so far to a newer one. All of it is empty for a state that is not newer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// True if the state is the newest so far.
    pub newest: bool,
    /// Number of partitions whose owner changed.
    pub moved: u64,
    /// Partitions that a transfer moved, whose items must be complete at the new owner.
    pub flips: Vec<Flip>,
    /// Partitions whose only copy may be lost with a node that was removed.
    pub lost: Vec<PartitionId>,
    /// Names of modules that are no longer deployed.
    pub ended: Vec<String>,
    /// True if the cluster was recovered: the lineage changed.
    pub recovered: bool,
}

impl News {
    fn between(before: &ClusterState, after: &ClusterState) -> Self {
        let went = |node: &NodeId| before.member(*node).is_some() && after.member(*node).is_none();
        let rested = |partition: &annulus_core::ring::Partition| {
            let stages = partition.pending.iter().flat_map(|pending| pending.target.iter());
            went(&partition.owner()) || stages.into_iter().any(went)
        };
        let lost: BTreeSet<PartitionId> =
            before.ring.iter().filter(|(_, partition)| rested(partition)).map(|(id, _)| id).collect();
        // If several entries were applied at once, a partition may have moved to a node that was removed right
        // after. The recorded losses name it.
        let told = after.losses.iter().filter(|(_, loss)| {
            loss.index > before.applied && !after.members.get(&loss.node).is_some_and(Member::is_live)
        });
        let lost: Vec<PartitionId> = lost.into_iter().chain(told.map(|(id, _)| *id)).collect();
        let recovered = before.lineage != after.lineage;
        let mut flips = if recovered { Vec::new() } else { counts::flips(before, after) };
        flips.retain(|flip| !lost.contains(&flip.partition));
        let moved =
            after.ring.iter().filter(|(id, _)| before.ring.owner(*id) != after.ring.owner(*id)).count();
        let ended = before.modules.iter().filter(|(uid, _)| !after.modules.contains_key(uid));
        let ended = ended.map(|(_, module)| module.name.clone()).collect();
        Self { ended, newest: true, moved: moved as u64, flips, lost, recovered }
    }
}

impl Ledger {
    /// Record the state that a node shows, and return the changes if it is the newest so far.
    ///
    /// # Errors
    /// Returns [`Rule::OneTruth`] if another node has shown another state of this entry.
    pub fn shows(&mut self, who: &str, state: &ClusterState) -> Result<News, Broken> {
        let at = (state.cluster, state.lineage, state.applied);
        let bytes = codec::encode(state).map_err(|error| Rule::OneTruth.broken(error.to_string()))?;
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        if *self.shown.entry(at).or_insert(digest) != digest {
            return Err(Rule::OneTruth.broken(format!("{who} shows another state of entry {at:?}")));
        }
        let cluster = *self.cluster.get_or_insert(state.cluster);
        let newer = |newest: &ClusterState| (newest.lineage, newest.applied) < (state.lineage, state.applied);
        if state.cluster != cluster || !self.newest.as_ref().is_none_or(newer) {
            return Ok(News::default());
        }
        let news = self
            .newest
            .as_ref()
            .map(|before| News::between(before, state))
            .unwrap_or(News { newest: true, ..News::default() });
        self.newest = Some(state.clone());
        Ok(news)
    }

    /// Return the newest state of the run's cluster; `None` before the first.
    pub fn newest(&self) -> Option<&ClusterState> {
        self.newest.as_ref()
    }

    /// Return the number of different entries of which a node has shown a state.
    pub fn entries(&self) -> usize {
        self.shown.len()
    }

    /// Check that a node may serve a partition, by the newest state.
    ///
    /// # Errors
    /// Returns [`Rule::OneTruth`] if another node owns the partition.
    pub fn serves(
        &self,
        node: NodeId,
        (module, partition): (ModuleUid, PartitionId),
        what: fmt::Arguments<'_>,
    ) -> Result<(), Broken> {
        let Some(state) = &self.newest else { return Ok(()) };
        let owner = state.ring.owner(partition);
        // A vnode whose module was undeployed still completes its current command, even if the partition has moved.
        let undeployed = module.0 <= state.applied && !state.modules.contains_key(&module);
        if owner == node || undeployed {
            return Ok(());
        }
        let what = format!(
            "{node} serves p{} ({what}), which {owner} has owned since entry {}",
            partition.0,
            state.ring.partition(partition).version
        );
        Err(Rule::OneTruth.broken(what))
    }

    /// Return the partitions whose items may be lost with this node's memory: those that it owns, and those of which
    /// it may have a complete stage.
    pub fn rests_on(&self, node: NodeId) -> Vec<PartitionId> {
        let Some(state) = &self.newest else { return Vec::new() };
        let of = |(id, partition): (PartitionId, &annulus_core::ring::Partition)| {
            let holds = partition.role_of(node, REPLICAS).holds();
            let stages = partition.pending.as_ref().is_some_and(|pending| pending.target.contains(&node));
            (holds || stages).then_some(id)
        };
        state.ring.iter().filter_map(of).collect()
    }
}
