//! What a committed change of a partition means to one node: whether it begins to serve, gives
//! up, lifts its seal or drops what it has staged (R1, R7).
//!
//! Called in log order, but a node that was away may see only the last of several changes.

use crate::ids::{NodeId, TransferId};
use crate::ring::Partition;
use crate::role::REPLICAS;

/// One partition as a node has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// The version that it has applied.
    pub version: u64,
    /// Is it the owner at that version?
    pub held: bool,
    /// It answers nothing, for this transfer.
    pub sealed: Option<TransferId>,
    /// What came of a transfer, and whether that is all.
    pub staged: Option<(TransferId, bool)>,
}

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The partition is this node's now, and what was staged becomes what serves.
    Promote,
    /// It is this node's, but what was staged is not all or of another transfer: it is dropped, and
    /// the loss is shown.
    DropIncomplete,
    /// It is this node's, but nothing was staged: what had come died with a process between the end
    /// of the transfer and its entry, or nobody was left to send it. The loss is shown.
    TakeEmpty,
    /// It is elsewhere: callers are sent there, items, seal and the handoff's taps go.
    GiveUp,
    /// After a recovery: it is elsewhere by a history that may not have its items. They are kept aside,
    /// and the loss is shown.
    SetAside,
    /// After a recovery: what was staged may be the only copy left. It is kept aside, and the loss shown.
    SetStageAside,
    /// The transfer that it is sealed for is over, and it is still here: it serves again.
    Unseal,
    /// The transfer that something is staged for is over: that must not come back.
    DropStage,
}

impl Holding {
    /// The same for the first state of another lineage: nothing is deleted on the strength of it, for
    /// what the recovery knew may be older than what is here (R19).
    pub fn recover(&mut self, partition: &Partition, me: NodeId) -> Vec<Change> {
        let kept = |change| match change {
            Change::GiveUp => Change::SetAside,
            Change::DropStage | Change::DropIncomplete => Change::SetStageAside,
            other => other,
        };
        self.apply(partition, me).into_iter().map(kept).collect()
    }

    /// Takes a committed partition; says what that changes.
    pub fn apply(&mut self, partition: &Partition, me: NodeId) -> Vec<Change> {
        let pending = partition.pending.as_ref().map(|transfer| transfer.id);
        let mut changes = Vec::new();
        if self.version < partition.version {
            let before = std::mem::replace(&mut self.version, partition.version);
            let held = partition.role_of(me, REPLICAS).holds();
            match (std::mem::replace(&mut self.held, held), held) {
                (false, true) => match self.staged.take() {
                    Some((transfer, true)) if transfer == partition.made_by => changes.push(Change::Promote),
                    Some(_) => changes.push(Change::DropIncomplete),
                    // What a node that starts holds, it held before.
                    None if before > 0 => changes.push(Change::TakeEmpty),
                    None => {}
                },
                (true, false) => {
                    self.sealed = None;
                    changes.push(Change::GiveUp);
                }
                (true, true) | (false, false) => {}
            }
        }
        if self.sealed.is_some() && self.sealed != pending {
            self.sealed = None;
            changes.push(Change::Unseal);
        }
        if self.staged.is_some_and(|(transfer, _)| Some(transfer) != pending) {
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
        let pending = pending.map(|id| Transfer { id: TransferId(id), target: vec![ME] });
        Partition { replicas: vec![owner], version, made_by: TransferId(made_by), pending }
    }

    #[test]
    fn a_whole_stage_of_the_very_transfer_is_promoted_and_no_other() {
        for (staged, expected) in [
            (Some((TransferId(7), true)), Some(Change::Promote)),
            (Some((TransferId(7), false)), Some(Change::DropIncomplete)),
            (Some((TransferId(6), true)), Some(Change::DropIncomplete)),
            (None, Some(Change::TakeEmpty)),
        ] {
            let mut holding = Holding { version: 5, staged, ..Holding::default() };
            let changes = holding.apply(&partition(ME, 8, 7, None), ME);
            assert_eq!(changes, expected.into_iter().collect::<Vec<_>>(), "{staged:?}");
            assert!(holding.held && holding.staged.is_none() && holding.version == 8);
        }
    }

    #[test]
    fn what_a_node_holds_when_it_starts_is_not_taken_from_anybody() {
        let mut holding = Holding::default();
        assert_eq!(holding.apply(&partition(ME, 8, 7, None), ME), []);
        assert!(holding.held);
    }

    #[test]
    fn a_seal_lasts_as_long_as_its_transfer_is_pending() {
        let sealed = Some(TransferId(7));
        let mut holding = Holding { version: 5, held: true, sealed, staged: None };
        assert_eq!(holding.apply(&partition(ME, 5, 1, Some(7)), ME), []);
        assert_eq!(holding.sealed, sealed);
        assert_eq!(holding.clone().apply(&partition(ME, 5, 1, Some(9)), ME), [Change::Unseal]);
        assert_eq!(holding.apply(&partition(OTHER, 8, 7, None), ME), [Change::GiveUp]);
        assert_eq!(holding, Holding { version: 8, ..Holding::default() });
    }

    #[test]
    fn a_recovery_deletes_nothing() {
        let staged = Some((TransferId(7), true));
        let mut holding = Holding { version: 5, held: true, ..Holding::default() };
        assert_eq!(holding.recover(&partition(OTHER, 8, 7, None), ME), [Change::SetAside]);
        for (owner, complete) in [(OTHER, true), (OTHER, false), (ME, false)] {
            let staged = Some((TransferId(7), complete));
            let mut holding = Holding { version: 5, staged, ..Holding::default() };
            assert_eq!(holding.recover(&partition(owner, 8, 1, None), ME), [Change::SetStageAside]);
            assert_eq!(holding.staged, None);
        }
        let mut holding = Holding { version: 5, staged, ..Holding::default() };
        assert_eq!(holding.recover(&partition(ME, 8, 7, None), ME), [Change::Promote]);
    }

    #[test]
    fn a_stage_of_a_transfer_that_is_over_is_dropped() {
        let staged = Some((TransferId(7), true));
        let mut holding = Holding { version: 5, staged, ..Holding::default() };
        assert_eq!(holding.apply(&partition(OTHER, 5, 1, Some(7)), ME), []);
        assert_eq!(holding.apply(&partition(OTHER, 5, 1, Some(8)), ME), [Change::DropStage]);
    }
}
