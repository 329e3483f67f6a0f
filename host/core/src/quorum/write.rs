//! One write that has run at its coordinator.

use super::{Group, quorum_of};
use crate::ids::NodeId;

/// A write between its run at the coordinator and its answer.
#[derive(Clone, Debug)]
pub struct Write {
    me: NodeId,
    group: Group,
    w: usize,
    /// The nodes that have made the write durable. A fallback counts for the member that it stands in for.
    acks: Vec<Ack>,
    /// The nodes that were asked.
    sent: Vec<NodeId>,
    /// The newest version that any answer has told of.
    newest: u64,
    /// Set once the caller has its answer.
    is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ack {
    by: NodeId,
    instead_of: NodeId,
    version: u64,
}

impl Ack {
    fn is_of_fallback(&self) -> bool {
        self.by != self.instead_of
    }
}

/// Too few nodes can be reached for a write to be acknowledged. Nothing was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reachable} of the nodes that keep the key can be reached, and a write needs {wanted}")]
pub struct NotEnough {
    /// The number of nodes that can be reached.
    pub reachable: usize,
    /// The number that the write needs.
    pub wanted: usize,
}

/// An event of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteEvent {
    /// A node has made the write durable.
    Durable {
        /// The node.
        by: NodeId,
        /// The member that it stands in for; the node itself unless it is a fallback.
        instead_of: NodeId,
        /// The version of the group at the node.
        version: u64,
    },
    /// A node refuses the items: by its version, which may be a newer one, it keeps none of this partition.
    Refused {
        /// The version of the group at the node.
        version: u64,
    },
    /// The coordinator has learned the group at a version.
    Learned(Group),
    /// The deadline of the request has come.
    Late,
}

/// A step to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteStep {
    /// Send the items to these nodes.
    Send(Vec<NodeId>),
    /// Learn the group at this version or a later one, and report it.
    Learn(u64),
    /// Acknowledge the write.
    Acknowledge,
    /// Answer that the outcome is unknown: the write may be found later. Never `not-applied`, because it has run (R10).
    Unknown,
}

impl Write {
    /// Check, before anything runs, that a write can be acknowledged: `can_take` tells which nodes can be reached, and
    /// `fallbacks` is the number of other nodes that may keep it instead of those that cannot (R6).
    ///
    /// # Errors
    /// If too few nodes of a set can take the write (R10).
    pub fn check(
        group: &Group,
        w: usize,
        can_take: impl Fn(NodeId) -> bool,
        fallbacks: usize,
    ) -> Result<(), NotEnough> {
        for set in group.sets() {
            let wanted = quorum_of(w, set);
            let members = set.iter().filter(|node| can_take(**node)).count();
            // What only fallbacks have cannot be read (R6).
            let reachable = if members == 0 { 0 } else { members + fallbacks };
            if reachable < wanted {
                return Err(NotEnough { reachable, wanted });
            }
        }
        Ok(())
    }

    /// Start a write that has run at `me`.
    pub fn start(group: Group, w: usize, me: NodeId) -> (Self, Vec<WriteStep>) {
        let newest = group.version;
        let mut write = Self { me, group, w, acks: Vec::new(), sent: vec![me], newest, is_over: false };
        let steps = write.send().into_iter().collect();
        (write, steps)
    }

    /// Return the group by which acknowledgements count.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Return true once the caller has its answer. Later acknowledgements change nothing.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Return the nodes that were asked and have not acknowledged.
    pub fn silent(&self) -> impl Iterator<Item = NodeId> {
        self.sent.iter().copied().filter(|node| !self.acks.iter().any(|ack| ack.instead_of == *node))
    }

    /// Handle an event, and return the steps to carry out.
    pub fn on(&mut self, event: WriteEvent) -> Vec<WriteStep> {
        let mut steps = Vec::new();
        match event {
            WriteEvent::Durable { by, instead_of, version } => {
                self.newest = self.newest.max(version);
                // A fallback that has become a member acknowledges again, as itself.
                let is_new = |ack: &Ack| by == instead_of && ack.is_of_fallback();
                let known = self.acks.iter().position(|ack| ack.by == by);
                if known.is_none_or(|at| is_new(&self.acks[at])) {
                    known.map(|at| self.acks.remove(at));
                    self.acks.push(Ack { by, instead_of, version });
                    if self.forget_former_stores() {
                        steps.extend(self.send());
                    }
                }
            }
            WriteEvent::Refused { version } => self.newest = self.newest.max(version),
            WriteEvent::Learned(group) => {
                if group.version > self.group.version {
                    self.newest = self.newest.max(group.version);
                    self.group = group;
                    self.forget_former_stores();
                    // Also those that no quorum needs are to have the write.
                    steps.extend(self.send());
                }
            }
            WriteEvent::Late => {
                if !std::mem::replace(&mut self.is_over, true) {
                    steps.push(WriteStep::Unknown);
                }
            }
        }
        if self.is_over {
            return steps;
        }
        if self.newest > self.group.version {
            // What was acknowledged counts by the sets of the newest version that any of its nodes knows.
            steps.push(WriteStep::Learn(self.newest));
        } else if !self.group.members.contains(&self.me) {
            // Whoever makes a store asks all members, as one of them may be the coordinator of a write on its way (see
            // `Build`). This node is none of them any more, so an acknowledgement may be of a store that is lost.
            self.is_over = true;
            steps.push(WriteStep::Unknown);
        } else if self.has_quorums() {
            self.is_over = true;
            steps.push(WriteStep::Acknowledge);
        }
        steps
    }

    /// Drop what was acknowledged by nodes that may have left and come back since then, and have it sent again.
    /// Return true if there is any.
    fn forget_former_stores(&mut self) -> bool {
        let Self { group, acks, sent, me, .. } = self;
        let before = acks.len();
        acks.retain(|ack| {
            // The coordinator drops a write whose store is gone.
            let holds = ack.version >= group.since(ack.instead_of) || ack.by == *me;
            if !holds {
                sent.retain(|node| *node != ack.instead_of);
            }
            holds
        });
        acks.len() < before
    }

    fn send(&mut self) -> Option<WriteStep> {
        let new: Vec<NodeId> = self.group.receivers().filter(|node| !self.sent.contains(node)).collect();
        self.sent.extend(&new);
        (!new.is_empty()).then_some(WriteStep::Send(new))
    }

    /// Return true if each set has acknowledged by a quorum, and by a member of its own at least once: what only fallbacks
    /// have cannot be read (R6). A fallback keeps the write for whichever members lack it.
    fn has_quorums(&self) -> bool {
        let fallbacks = self.acks.iter().filter(|ack| ack.is_of_fallback()).count();
        self.group.sets().all(|set| {
            let own = self.acks.iter().filter(|ack| !ack.is_of_fallback() && set.contains(&ack.by)).count();
            own > 0 && own + fallbacks >= quorum_of(self.w, set)
        })
    }

    /// Return the number of fallbacks that this write needs, if the nodes that `will` tells acknowledge it, and `asked` fallbacks.
    pub fn lacks(&self, will: impl Fn(NodeId) -> bool, asked: usize) -> usize {
        let has = |node: NodeId| self.acks.iter().any(|ack| ack.by == node && !ack.is_of_fallback());
        let lacks = |set: &[NodeId]| {
            let members = set.iter().filter(|node| has(**node) || will(**node)).count();
            quorum_of(self.w, set).saturating_sub(members + asked)
        };
        self.group.sets().map(lacks).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(version: u64, members: &[u64], target: Option<&[u64]>) -> Group {
        let ids = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<Vec<_>>();
        let (target, pending) = (target.map(ids), if target.is_some() { version } else { 0 });
        Group { version, members: ids(members), target, made_by: 1, pending }
    }

    fn group_of_one() -> Group {
        group(1, &[1], None)
    }

    fn durable(by: u64, version: u64) -> WriteEvent {
        WriteEvent::Durable { by: NodeId(by), instead_of: NodeId(by), version }
    }

    fn instead(by: u64, of: u64) -> WriteEvent {
        WriteEvent::Durable { by: NodeId(by), instead_of: NodeId(of), version: 5 }
    }

    fn start(group: Group) -> Write {
        Write::start(group, 2, NodeId(1)).0
    }

    const DONE: [WriteStep; 1] = [WriteStep::Acknowledge];

    #[test]
    fn a_write_goes_to_all_others_and_is_acknowledged_by_w() {
        let (mut write, steps) = Write::start(group(5, &[1, 2, 3], None), 2, NodeId(1));
        assert_eq!(steps, [WriteStep::Send(vec![NodeId(2), NodeId(3)])]);
        assert_eq!(write.on(durable(3, 5)), []);
        assert_eq!(write.silent().collect::<Vec<_>>(), [NodeId(1), NodeId(2)]);
        assert_eq!(write.on(durable(1, 5)), DONE);
        assert_eq!((write.on(durable(2, 5)), write.on(WriteEvent::Late)), (vec![], vec![]));
    }

    #[test]
    fn two_acks_of_one_node_count_once() {
        let mut write = start(group(5, &[1, 2, 3], None));
        assert_eq!((write.on(durable(2, 5)), write.on(durable(2, 5))), (vec![], vec![]));
        // A fallback is another node, for whichever member it was asked.
        assert_eq!(write.on(instead(9, 2)), DONE);
        // As a member it acknowledges again, and is one node still.
        let mut write = Write::start(group(5, &[1, 2, 3], None), 3, NodeId(1)).0;
        assert_eq!((write.on(durable(1, 5)), write.on(instead(9, 3))), (vec![], vec![]));
        assert_eq!((write.lacks(|node| node == NodeId(2), 0), write.lacks(|_| false, 1)), (1, 1));
        let learned = group(9, &[1, 2, 9], None);
        assert_eq!(write.on(WriteEvent::Learned(learned)), [WriteStep::Send(vec![NodeId(9)])]);
        assert_eq!(write.on(durable(9, 9)), []);
        assert_eq!(write.on(durable(2, 9)), DONE);
    }

    #[test]
    fn an_ack_of_fallbacks_alone_is_no_write() {
        let mut write = start(group(5, &[1, 2, 3], None));
        assert_eq!((write.on(instead(8, 2)), write.on(instead(9, 3))), (vec![], vec![]));
        assert_eq!(write.on(durable(1, 5)), DONE);
    }

    #[test]
    fn while_a_transfer_is_pending_both_sets_acknowledge() {
        let mut write = start(group(9, &[1, 2, 3], Some(&[1, 4, 5])));
        assert_eq!((write.on(durable(1, 9)), write.on(durable(2, 9))), (vec![], vec![]));
        assert_eq!(write.on(durable(5, 9)), DONE);
    }

    #[test]
    fn an_ack_with_a_newer_version_counts_once_its_sets_are_known() {
        let mut write = start(group(5, &[1, 2, 3], None));
        assert_eq!(write.on(durable(1, 5)), []);
        assert_eq!(write.on(durable(2, 9)), [WriteStep::Learn(9)]);
        let learned = group(9, &[1, 2, 3], Some(&[1, 4, 5]));
        assert_eq!(write.on(WriteEvent::Learned(learned)), [WriteStep::Send(vec![NodeId(4), NodeId(5)])]);
        assert_eq!(write.on(durable(4, 9)), DONE);
    }

    #[test]
    fn a_node_that_no_quorum_needs_gets_the_write_too() {
        let mut write = start(group(5, &[1, 2, 3], None));
        assert_eq!((write.on(durable(1, 5)), write.on(durable(2, 9))), (vec![], vec![WriteStep::Learn(9)]));
        let learned = group(9, &[1, 2, 3], Some(&[1, 2, 4]));
        let steps = [WriteStep::Send(vec![NodeId(4)]), WriteStep::Acknowledge];
        assert_eq!(write.on(WriteEvent::Learned(learned)), steps);
    }

    #[test]
    fn an_ack_of_a_store_that_a_node_has_given_up_does_not_count() {
        let mut write = start(group(5, &[1, 2, 3], None));
        assert_eq!((write.on(durable(1, 5)), write.on(durable(2, 5))), (vec![], DONE.to_vec()));
        let mut write = start(group(5, &[1, 2, 3], None));
        assert_eq!((write.on(durable(1, 5)), write.on(durable(3, 20))), (vec![], vec![WriteStep::Learn(20)]));
        // The second node left and comes back.
        let mut write = start(group(5, &[1, 2, 3], None));
        assert_eq!(write.on(durable(2, 5)), []);
        let learned = Group { made_by: 8, ..group(20, &[1, 3, 4], Some(&[1, 2, 3])) };
        let again = WriteStep::Send(vec![NodeId(4), NodeId(2)]);
        assert_eq!(write.on(WriteEvent::Learned(learned)), [again]);
        // What its former store had acknowledged may arrive only now.
        assert_eq!(write.on(durable(2, 5)), [WriteStep::Send(vec![NodeId(2)])]);
        assert_eq!((write.on(durable(1, 20)), write.on(durable(2, 20))), (vec![], vec![]));
        assert_eq!(write.on(durable(3, 20)), DONE);
    }

    #[test]
    fn a_coordinator_that_is_no_member_any_more_acknowledges_nothing() {
        let mut write = start(group(5, &[1, 2, 3], None));
        let learned = group(9, &[2, 3, 4], None);
        let steps = [WriteStep::Send(vec![NodeId(4)]), WriteStep::Unknown];
        assert_eq!(write.on(WriteEvent::Learned(learned)), steps);
    }

    #[test]
    fn nothing_is_refused_after_it_ran() {
        let mut write = start(group(5, &[1, 2, 3], None));
        assert_eq!(write.on(WriteEvent::Refused { version: 5 }), []);
        assert_eq!(write.on(WriteEvent::Late), [WriteStep::Unknown]);
        assert!(write.is_over());
    }

    #[test]
    fn a_write_that_cannot_be_acknowledged_is_refused_before_it_runs() {
        let small = group_of_one();
        let group = group(9, &[1, 2, 3], Some(&[1, 4, 5]));
        let check = |up: &[u64]| Write::check(&group, 2, |node| up.contains(&node.0), 0);
        assert_eq!((check(&[1, 2, 4]), check(&[1, 2, 3, 4])), (Ok(()), Ok(())));
        assert_eq!(check(&[1, 2, 3]), Err(NotEnough { reachable: 1, wanted: 2 }));
        // A fallback takes the place of a member that cannot be reached, and of all of them never.
        let with_one = |up: &[u64]| Write::check(&group, 2, |node| up.contains(&node.0), 1);
        assert_eq!((with_one(&[1]), with_one(&[2, 5])), (Ok(()), Ok(())));
        assert_eq!(with_one(&[2, 3]), Err(NotEnough { reachable: 0, wanted: 2 }));
        // A set that is smaller than n needs all of its nodes at most.
        assert_eq!(Write::check(&small, 2, |_| true, 0), Ok(()));
    }
}
