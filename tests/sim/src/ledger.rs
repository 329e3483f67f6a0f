//! One truth per index: whatever any node shows of an entry, all others show the same.

use std::collections::BTreeMap;

use annulus_core::codec;
use annulus_core::ids::{ClusterId, NodeId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::{ClusterState, Lineage};
use sha2::{Digest as _, Sha256};

use crate::rule::{Broken, Rule};

/// What nodes have shown.
#[derive(Default)]
pub struct Ledger {
    shown: BTreeMap<(ClusterId, Lineage, u64), [u8; 32]>,
    /// The cluster that counts: the first that was shown.
    cluster: Option<ClusterId>,
    newest: Option<ClusterState>,
}

impl Ledger {
    /// A node shows its state.
    ///
    /// # Errors
    /// Another node has shown another state of this entry.
    pub fn shows(&mut self, who: &str, state: &ClusterState) -> Result<(), Broken> {
        let at = (state.cluster, state.lineage, state.applied);
        let bytes = codec::encode(state).map_err(|error| Rule::OneTruth.broken(error.to_string()))?;
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        if *self.shown.entry(at).or_insert(digest) != digest {
            return Err(Rule::OneTruth.broken(format!("{who} has another state of entry {at:?}")));
        }
        let cluster = *self.cluster.get_or_insert(state.cluster);
        let newer = |newest: &ClusterState| (newest.lineage, newest.applied) < (state.lineage, state.applied);
        if state.cluster == cluster && self.newest.as_ref().is_none_or(newer) {
            self.newest = Some(state.clone());
        }
        Ok(())
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
    pub fn serves(&self, node: NodeId, partition: PartitionId) -> Result<(), Broken> {
        let Some(state) = &self.newest else { return Ok(()) };
        let owner = state.ring.owner(partition);
        if owner == node {
            return Ok(());
        }
        let what = format!(
            "{node} serves p{}, which {owner} holds since entry {}",
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
            let holds = partition.replicas.first() == Some(&node);
            let stages = partition.pending.as_ref().is_some_and(|pending| pending.target.contains(&node));
            (holds || stages).then_some(id)
        };
        state.ring.iter().filter_map(of).collect()
    }
}
