//! One truth per index (R1, R2): whatever any node shows of an entry, all others show the same; and who carries
//! something out is the one who holds the partition.

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

/// What nodes have shown.
#[derive(Default)]
pub struct Ledger {
    shown: BTreeMap<(ClusterId, Lineage, u64), [u8; 32]>,
    /// The cluster that counts: the first that was shown.
    cluster: Option<ClusterId>,
    newest: Option<ClusterState>,
}

/// What a newer state says that the one before did not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Is it the newest state so far?
    pub newest: bool,
    /// Partitions whose holder changed.
    pub moved: u64,
    /// What was moved, and is to have arrived whole.
    pub flips: Vec<Flip>,
    /// Partitions whose only copy may be gone with a node that was removed.
    pub lost: Vec<PartitionId>,
    /// Modules that are there no more.
    pub ended: Vec<String>,
    /// Somebody has recovered the cluster.
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
        // Where more than one entry came at once, what moved to a node and went with it is told by the loss.
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
    /// A node shows its state. The news that come of it, if it is the newest so far.
    ///
    /// # Errors
    /// Another node has shown another state of this entry.
    pub fn shows(&mut self, who: &str, state: &ClusterState) -> Result<News, Broken> {
        let at = (state.cluster, state.lineage, state.applied);
        let bytes = codec::encode(state).map_err(|error| Rule::OneTruth.broken(error.to_string()))?;
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        if *self.shown.entry(at).or_insert(digest) != digest {
            return Err(Rule::OneTruth.broken(format!("{who} has another state of entry {at:?}")));
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

    /// The newest that any has shown.
    pub fn newest(&self) -> Option<&ClusterState> {
        self.newest.as_ref()
    }

    /// How many entries were shown.
    pub fn entries(&self) -> usize {
        self.shown.len()
    }

    /// A node carries something out in a partition: may it?
    ///
    /// # Errors
    /// Another node holds the partition.
    pub fn serves(
        &self,
        node: NodeId,
        (module, partition): (ModuleUid, PartitionId),
        what: fmt::Arguments<'_>,
    ) -> Result<(), Broken> {
        let Some(state) = &self.newest else { return Ok(()) };
        let owner = state.ring.owner(partition);
        // A vnode whose module was undeployed ends with the command that it is at, wherever its partition goes meanwhile.
        let undeployed = module.0 <= state.applied && !state.modules.contains_key(&module);
        if owner == node || undeployed {
            return Ok(());
        }
        let what = format!(
            "{node} serves p{} ({what}), which {owner} holds since entry {}",
            partition.0,
            state.ring.partition(partition).version
        );
        Err(Rule::OneTruth.broken(what))
    }

    /// The partitions whose items may end with this node's memory: those that it holds, and those of which it
    /// may have a whole stage.
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
