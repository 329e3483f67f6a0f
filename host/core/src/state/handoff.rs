//! The limits on handoffs that operators set, for the cluster and for single nodes.
//!
//! No other limits on transfers exist; a setting that was not made has the default that `transfers limit` shows. A
//! node reads its limits from its copy of the state, so a change takes effect as soon as it is applied there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

use super::{ClusterState, Outcome, Refusal};

/// The default number of transfers that a node sends at once. Each keeps a core of both nodes busy for one page at a
/// time: a few saturate a small machine and leave processor time for requests.
pub const OUTGOING_AT_ONCE: u16 = 4;
/// The default number of transfers that a node receives at once: all that four senders may send. Each costs a window
/// of unstaged items at most.
pub const INCOMING_AT_ONCE: u16 = 16;
/// The maximum number of transfers that a node may send at once. Two nodes share 32 bulk streams, and components
/// and answers need some.
pub const MOST_OUTGOING: u16 = 24;
/// The lowest rate. A page of items is sent whole, which would take minutes at a lower one.
pub const LEAST_BYTES_PER_SECOND: u64 = 1024;

/// The settings for one node, or for every node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffLimits {
    /// The number of transfers sent at once.
    #[serde(default)]
    pub outgoing: Option<u16>,
    /// The number of transfers received at once.
    #[serde(default)]
    pub incoming: Option<u16>,
    /// The bytes of items sent per second.
    #[serde(default)]
    pub bytes_per_second: Option<Rate>,
    /// Whether handoffs are paused: no new transfer is sent or received.
    #[serde(default)]
    pub paused: bool,
}

/// The send rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    /// No limit.
    Unlimited,
    /// Bytes of items per second.
    Bytes(u64),
}

/// All settings of handoffs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffSettings {
    /// The settings for each node without a setting for it alone.
    #[serde(default)]
    pub cluster: HandoffLimits,
    /// The settings for single nodes.
    #[serde(default)]
    pub nodes: BTreeMap<NodeId, HandoffLimits>,
}

/// The limits in effect for one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveLimits {
    /// The number of transfers sent at once.
    pub outgoing: u16,
    /// The number of transfers received at once.
    pub incoming: u16,
    /// The bytes of items sent per second; no limit if `None`.
    pub bytes_per_second: Option<u64>,
    /// Whether handoffs are paused: no new transfer is sent or received.
    pub paused: bool,
}

impl EffectiveLimits {
    /// Return true if the node may receive one more transfer besides the `others` that it receives.
    pub fn admits(&self, others: usize) -> bool {
        !self.paused && others < usize::from(self.incoming)
    }
}

/// One setting to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandoffChange {
    /// The number of transfers sent at once; `None` restores the default.
    Outgoing(Option<u16>),
    /// The number of transfers received at once; `None` restores the default.
    Incoming(Option<u16>),
    /// The send rate; `None` restores the default.
    BytesPerSecond(Option<Rate>),
    /// Whether to hold every transfer that is not sealed.
    Paused(bool),
}

impl HandoffSettings {
    /// Return the limits in effect for a node: its own settings, else the cluster's, else the defaults. It is
    /// paused if either is.
    pub fn of(&self, node: NodeId) -> EffectiveLimits {
        self.with(self.nodes.get(&node).copied().unwrap_or_default())
    }

    /// Return the limits of a node without settings for it alone.
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
        // Empty settings, and those of removed nodes, are not kept.
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
