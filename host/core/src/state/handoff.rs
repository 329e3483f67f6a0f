//! How much may move at once, as operators set it: for the cluster, and for single nodes.
//!
//! There is no other limit on transfers: what is not set has the default that `transfers limit`
//! shows. A node reads its limits from its copy of the state, so a change takes effect as soon as
//! it is applied there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

use super::{ClusterState, Outcome, Refusal};

/// Transfers that one node sends at once where nobody says otherwise. Each keeps a core of both
/// sides busy for a page at a time: a few fill a small machine and leave room for requests.
pub const OUTGOING_AT_ONCE: u16 = 4;
/// Transfers that one node takes in at once where nobody says otherwise: four senders with all
/// that they may send; each costs at most a window of unstaged items.
pub const INCOMING_AT_ONCE: u16 = 16;
/// The most transfers that a node may send at once: two nodes have 32 bulk streams between them,
/// and components and answers need some.
pub const MOST_OUTGOING: u16 = 24;
/// The slowest rate: a page of items is sent whole, which at less would take minutes.
pub const LEAST_BYTES_PER_SECOND: u64 = 1024;

/// What an operator has said about one node, or about every node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffLimits {
    /// Transfers sent at once.
    #[serde(default)]
    pub outgoing: Option<u16>,
    /// Transfers taken in at once.
    #[serde(default)]
    pub incoming: Option<u16>,
    /// Bytes of items sent in a second.
    #[serde(default)]
    pub bytes_per_second: Option<Rate>,
    /// Nothing new is sent or taken in.
    #[serde(default)]
    pub paused: bool,
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    /// As fast as it goes.
    Unlimited,
    /// So many bytes of items in a second.
    Bytes(u64),
}

/// Every setting of handoffs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffSettings {
    /// For each node that has none of its own.
    #[serde(default)]
    pub cluster: HandoffLimits,
    /// For single nodes.
    #[serde(default)]
    pub nodes: BTreeMap<NodeId, HandoffLimits>,
}

/// What holds for one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveLimits {
    /// Transfers sent at once.
    pub outgoing: u16,
    /// Transfers taken in at once.
    pub incoming: u16,
    /// Bytes of items sent in a second, if there is a limit.
    pub bytes_per_second: Option<u64>,
    /// Nothing new is sent or taken in.
    pub paused: bool,
}

/// One setting to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandoffChange {
    /// Transfers sent at once; back to the default with none.
    Outgoing(Option<u16>),
    /// Transfers taken in at once; back to the default with none.
    Incoming(Option<u16>),
    /// How fast; back to the default with none.
    BytesPerSecond(Option<Rate>),
    /// Hold everything that is not sealed, or go on.
    Paused(bool),
}

impl HandoffSettings {
    /// What holds for a node: its own settings, else the cluster's, else the defaults. It is paused
    /// if either is.
    pub fn of(&self, node: NodeId) -> EffectiveLimits {
        self.with(self.nodes.get(&node).copied().unwrap_or_default())
    }

    /// What holds for a node of which nothing is said.
    pub fn of_any(&self) -> EffectiveLimits {
        self.with(HandoffLimits::default())
    }

    fn with(&self, own: HandoffLimits) -> EffectiveLimits {
        let rate = own.bytes_per_second.or(self.cluster.bytes_per_second).unwrap_or(Rate::Unlimited);
        EffectiveLimits {
            outgoing: own.outgoing.or(self.cluster.outgoing).unwrap_or(OUTGOING_AT_ONCE),
            incoming: own.incoming.or(self.cluster.incoming).unwrap_or(INCOMING_AT_ONCE),
            bytes_per_second: match rate {
                Rate::Unlimited => None,
                Rate::Bytes(bytes) => Some(bytes),
            },
            paused: own.paused || self.cluster.paused,
        }
    }
}

impl HandoffLimits {
    fn change(&mut self, change: HandoffChange) {
        match change {
            HandoffChange::Outgoing(limit) => self.outgoing = limit,
            HandoffChange::Incoming(limit) => self.incoming = limit,
            HandoffChange::BytesPerSecond(rate) => self.bytes_per_second = rate,
            HandoffChange::Paused(paused) => self.paused = paused,
        }
    }
}

impl ClusterState {
    pub(super) fn set_handoff(
        &mut self,
        node: Option<NodeId>,
        changes: &[HandoffChange],
    ) -> Result<Outcome, Refusal> {
        for change in changes {
            check(change)?;
        }
        let limits = match node {
            None => &mut self.handoff.cluster,
            Some(node) if self.member(node).is_some() => self.handoff.nodes.entry(node).or_default(),
            Some(node) => return Err(Refusal::NotMember(node.to_string())),
        };
        changes.iter().for_each(|change| limits.change(*change));
        // What says nothing is not kept, nor what was said about a node that is gone.
        let gone: Vec<NodeId> =
            self.handoff.nodes.keys().copied().filter(|node| self.member(*node).is_none()).collect();
        self.handoff.nodes.retain(|node, limits| *limits != HandoffLimits::default() && !gone.contains(node));
        Ok(Outcome::Done)
    }
}

fn check(change: &HandoffChange) -> Result<(), Refusal> {
    let bad = |why: String| Err(Refusal::BadSetting(why));
    match change {
        HandoffChange::Outgoing(Some(0)) | HandoffChange::Incoming(Some(0)) => {
            bad("at least one transfer at once; to hold them all, `annulus transfers pause`".into())
        }
        HandoffChange::Outgoing(Some(many)) if *many > MOST_OUTGOING => {
            bad(format!("at most {MOST_OUTGOING} transfers are sent at once"))
        }
        HandoffChange::BytesPerSecond(Some(Rate::Bytes(bytes))) if *bytes < LEAST_BYTES_PER_SECOND => {
            bad(format!("the slowest rate is {LEAST_BYTES_PER_SECOND} bytes per second"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_own_limit_comes_first_then_the_clusters_then_the_default() {
        let mut settings = HandoffSettings::default();
        let (a, b) = (NodeId(0), NodeId(7));
        let default = EffectiveLimits { outgoing: 4, incoming: 16, bytes_per_second: None, paused: false };
        assert_eq!(settings.of(a), default);
        settings.cluster.change(HandoffChange::Outgoing(Some(1)));
        settings.cluster.change(HandoffChange::BytesPerSecond(Some(Rate::Bytes(5000))));
        let own = settings.nodes.entry(b).or_default();
        own.change(HandoffChange::Outgoing(Some(9)));
        own.change(HandoffChange::BytesPerSecond(Some(Rate::Unlimited)));
        own.change(HandoffChange::Paused(true));
        assert_eq!(settings.of(a), EffectiveLimits { outgoing: 1, bytes_per_second: Some(5000), ..default });
        assert_eq!(settings.of(b), EffectiveLimits { outgoing: 9, paused: true, ..default });
        settings.cluster.change(HandoffChange::Paused(true));
        assert!(settings.of(a).paused);
    }
}
