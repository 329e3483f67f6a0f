//! The effect of a committed change of a partition on one node: whether it starts to serve, stops serving, lifts its
//! seal or drops its stage (R1, R7).
//!
//! Changes are applied in log order, but a node that was away may see only the last of several. A node that has lost power
//! may first see a state that is older than its seals and stages: it knows nothing of their transfers.

use crate::ids::{NodeId, TransferId};
use crate::ring::Partition;
use crate::role::REPLICAS;

/// The state of one partition at one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// The version that the node has applied.
    pub version: u64,
    /// Whether the node holds the partition at that version.
    pub held: bool,
    /// The transfer that the partition is sealed for.
    pub sealed: Option<TransferId>,
    /// The transfer that items are staged for, and whether the stage is complete.
    pub staged: Option<(TransferId, bool)>,
}

/// A step to carry out, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This node holds the partition now: the stage becomes the vnode's state.
    Promote,
    /// This node holds the partition now, but its stage is incomplete or of another transfer: drop the stage and show
    /// the loss.
    DropIncomplete,
    /// This node holds the partition now, but has no stage: the stage ended with a process between the end of the
    /// transfer and its entry, or no node was left to send the items. Show the loss.
    TakeEmpty,
    /// Another node holds the partition now: redirect callers; delete items, seal and outgoing streams.
    GiveUp,
    /// After a recovery, another node holds the partition, by a history that may lack this node's items: keep them aside
    /// and show the loss.
    SetAside,
    /// After a recovery, the stage may be the only copy left: keep it aside and show the loss.
    SetStageAside,
    /// The transfer of the seal was cancelled: serve again.
    Unseal,
    /// The transfer of the stage was cancelled: drop the stage.
    DropStage,
}

impl Holding {
    /// Apply the first state of another lineage. Nothing is deleted because of it, as the recovered state may be older
    /// than this node's items (R19).
    pub fn recover(&mut self, partition: &Partition, me: NodeId, index: u64) -> Vec<Change> {
        let kept = |change| match change {
            Change::GiveUp => Change::SetAside,
            Change::DropStage | Change::DropIncomplete => Change::SetStageAside,
            other => other,
        };
        self.apply(partition, me, index).into_iter().map(kept).collect()
    }

    /// Apply a committed partition, in the state at log index `index`, and return the steps that follow.
    pub fn apply(&mut self, partition: &Partition, me: NodeId, index: u64) -> Vec<Change> {
        let pending = partition.pending.as_ref().map(|transfer| transfer.id);
        // The id of a transfer is the index of the entry that began it.
        let is_known = |transfer: TransferId| transfer.0 <= index;
        let is_over = |transfer: TransferId| is_known(transfer) && Some(transfer) != pending;
        let mut changes = Vec::new();
        if self.version < partition.version {
            let before = std::mem::replace(&mut self.version, partition.version);
            let held = partition.role_of(me, REPLICAS).holds();
            match (std::mem::replace(&mut self.held, held), held) {
                (false, true) => match self.staged.take_if(|(transfer, _)| is_known(*transfer)) {
                    Some((transfer, true)) if transfer == partition.made_by => changes.push(Change::Promote),
                    Some(_) => changes.push(Change::DropIncomplete),
                    // A node that starts held the partition before.
                    None if before > 0 => changes.push(Change::TakeEmpty),
                    None => {}
                },
                (true, false) => {
                    self.sealed.take_if(|transfer| is_known(*transfer));
                    changes.push(Change::GiveUp);
                }
                (true, true) | (false, false) => {}
            }
        }
        if self.sealed.is_some_and(is_over) {
            self.sealed = None;
            changes.push(Change::Unseal);
        }
        if self.staged.is_some_and(|(transfer, _)| is_over(transfer)) {
            self.staged = None;
            changes.push(Change::DropStage);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Transfer;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn partition(owner: NodeId, version: u64, made_by: u64, pending: Option<u64>) -> Partition {
        let pending = pending.map(|id| Transfer::new(TransferId(id), vec![ME]));
        Partition { made_by: TransferId(made_by), pending, ..Partition::held_by(vec![owner], version) }
    }

    #[test]
    fn only_a_complete_stage_of_the_flipped_transfer_is_promoted() {
        for (staged, expected) in [
            (Some((TransferId(7), true)), Some(Change::Promote)),
            (Some((TransferId(7), false)), Some(Change::DropIncomplete)),
            (Some((TransferId(6), true)), Some(Change::DropIncomplete)),
            (None, Some(Change::TakeEmpty)),
        ] {
            let mut holding = Holding { version: 5, staged, ..Holding::default() };
            let changes = holding.apply(&partition(ME, 8, 7, None), ME, 9);
            assert_eq!(changes, expected.into_iter().collect::<Vec<_>>(), "{staged:?}");
            assert!(holding.held && holding.staged.is_none() && holding.version == 8);
        }
    }

    #[test]
    fn a_partition_that_a_node_holds_at_its_start_needs_no_step() {
        let mut holding = Holding::default();
        assert_eq!(holding.apply(&partition(ME, 8, 7, None), ME, 9), []);
        assert!(holding.held);
    }

    #[test]
    fn a_seal_lasts_as_long_as_its_transfer_is_pending() {
        let sealed = Some(TransferId(7));
        let mut holding = Holding { version: 5, held: true, sealed, staged: None };
        assert_eq!(holding.apply(&partition(ME, 5, 1, Some(7)), ME, 9), []);
        assert_eq!(holding.sealed, sealed);
        assert_eq!(holding.clone().apply(&partition(ME, 5, 1, Some(9)), ME, 9), [Change::Unseal]);
        assert_eq!(holding.apply(&partition(OTHER, 8, 7, None), ME, 9), [Change::GiveUp]);
        assert_eq!(holding, Holding { version: 8, ..Holding::default() });
    }

    #[test]
    fn a_recovery_deletes_nothing() {
        let staged = Some((TransferId(7), true));
        let mut holding = Holding { version: 5, held: true, ..Holding::default() };
        assert_eq!(holding.recover(&partition(OTHER, 8, 7, None), ME, 9), [Change::SetAside]);
        for (owner, complete) in [(OTHER, true), (OTHER, false), (ME, false)] {
            let staged = Some((TransferId(7), complete));
            let mut holding = Holding { version: 5, staged, ..Holding::default() };
            assert_eq!(holding.recover(&partition(owner, 8, 1, None), ME, 9), [Change::SetStageAside]);
            assert_eq!(holding.staged, None);
        }
        let mut holding = Holding { version: 5, staged, ..Holding::default() };
        assert_eq!(holding.recover(&partition(ME, 8, 7, None), ME, 9), [Change::Promote]);
    }

    #[test]
    fn a_state_from_before_a_transfer_ends_neither_its_stage_nor_its_seal() {
        let (staged, sealed) = (Some((TransferId(7), true)), Some(TransferId(7)));
        let mut receiver = Holding { staged, ..Holding::default() };
        assert_eq!(receiver.apply(&partition(OTHER, 5, 1, None), ME, 6), []);
        assert_eq!(receiver.apply(&partition(ME, 8, 7, None), ME, 8), [Change::Promote]);
        let mut giver = Holding { sealed, ..Holding::default() };
        assert_eq!(giver.apply(&partition(ME, 5, 1, None), ME, 6), []);
        assert_eq!(giver.sealed, sealed);
        assert_eq!(giver.apply(&partition(ME, 5, 1, None), ME, 7), [Change::Unseal]);
        // The partition came and went before the transfer that the state does not know yet.
        let mut again = Holding { version: 1, staged, ..Holding::default() };
        assert_eq!(again.apply(&partition(ME, 3, 2, None), ME, 3), [Change::TakeEmpty]);
        assert_eq!(again.apply(&partition(OTHER, 5, 4, None), ME, 5), [Change::GiveUp]);
        assert_eq!(again.staged, staged);
        assert_eq!(again.apply(&partition(ME, 8, 7, None), ME, 8), [Change::Promote]);
    }

    #[test]
    fn a_stage_of_a_transfer_that_has_ended_is_dropped() {
        let staged = Some((TransferId(7), true));
        let mut holding = Holding { version: 5, staged, ..Holding::default() };
        assert_eq!(holding.apply(&partition(OTHER, 5, 1, Some(7)), ME, 9), []);
        assert_eq!(holding.apply(&partition(OTHER, 5, 1, Some(8)), ME, 9), [Change::DropStage]);
    }
}
