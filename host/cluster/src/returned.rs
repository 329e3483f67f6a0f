//! A node that an operator marked as down is a member again once it replies.
//!
//! Only replies to messages that were sent after the leader saw the mark count, because a node that replied
//! earlier may have died in between.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::state::{ClusterState, MemberStatus};
use tokio::time::Instant;

/// The time at which this leader saw each mark.
#[derive(Debug, Default)]
pub(super) struct DownMarks {
    since: BTreeMap<NodeId, Instant>,
}

impl DownMarks {
    /// Return a marked node that has replied since the mark. `silence_of` is the time since the last message
    /// that a node has replied to was sent.
    pub(super) fn returned(
        &mut self,
        state: &ClusterState,
        me: NodeId,
        silence_of: impl Fn(NodeId) -> Option<Duration>,
    ) -> Option<NodeId> {
        let is_down = |node: &NodeId| state.member(*node).is_some_and(|m| m.status == MemberStatus::Down);
        self.since.retain(|node, _| is_down(node));
        let marked = state.live_members().map(|member| member.id).filter(is_down);
        let mut back = None;
        for node in marked {
            let since = self.since.entry(node).or_insert_with(Instant::now).elapsed();
            // The leader is up by definition.
            if node == me || silence_of(node).is_some_and(|silence| silence < since) {
                back = back.or(Some(node));
            }
        }
        back
    }

    /// Forget all marks, because this node no longer leads.
    pub(super) fn clear(&mut self) {
        self.since.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use annulus_core::ids::{ClusterId, Digest, NodeUid};
    use annulus_core::keyspace::RingSize;
    use annulus_core::state::{Command, Machine, Member};

    use super::*;

    fn state() -> (Machine, NodeId) {
        let member = |uid: u8| Member {
            id: NodeId(0),
            uid: NodeUid([uid; 16]),
            name: format!("n{uid}"),
            listen: String::new(),
            http: String::new(),
            zone: None,
            weight: 1,
            status: MemberStatus::Member,
            staged: false,
            banned: false,
            key: Some(Digest([uid; 32])),
        };
        let token = Digest([1; 32]);
        let mut machine = Machine::default();
        let log = [
            Command::Found {
                cluster: ClusterId([1; 16]),
                ring_size: RingSize::default(),
                width: 3,
                founder: member(1),
                authority: String::new(),
                authority_key: String::new(),
                level: annulus_core::version::LEVEL,
            },
            Command::IssueToken { token, now_ms: 0, expires_ms: 9, uses: None },
            Command::Admit { member: member(2), token, now_ms: 1 },
            Command::Joined { node: NodeId(3) },
            Command::Down { node: NodeId(3) },
        ];
        for (at, command) in log.iter().enumerate() {
            machine.apply(at as u64 + 1, command);
        }
        (machine, NodeId(3))
    }

    #[test]
    fn only_an_answer_after_the_mark_brings_a_node_back() {
        let (machine, node) = state();
        let state = machine.state.unwrap();
        let mut marks = DownMarks::default();
        let me = NodeId(0);
        // The node replied just before it was marked, and has been silent since.
        let killed = Instant::now();
        assert_eq!(marks.returned(&state, me, |_| Some(killed.elapsed())), None);
        assert_eq!(marks.returned(&state, me, |_| None), None);
        assert_eq!(marks.returned(&state, me, |_| Some(killed.elapsed())), None);
        assert_eq!(marks.returned(&state, me, |_| Some(Duration::ZERO)), Some(node));
        assert_eq!(marks.returned(&state, node, |_| None), Some(node), "the leader itself is up");
    }
}
