//! What the member table says about the sender of a message (R20). A certificate proves which node a peer is; the
//! table decides whether that node is served.

use crate::ids::{NodeId, NodeUid};
use crate::keyspace::RingSize;

use super::{ClusterState, Lineage};

/// The largest difference to the number of a lineage that another node reports. Each recovery adds 1 to the number,
/// and a node that has missed more recoveries than this is no longer of any use. A larger number would leave no
/// numbers for later recoveries.
const PLAUSIBLE: u64 = 1000;

/// The standing of a node in a cluster, by one copy of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is a member that is not removed.
    Member(NodeId),
    /// It has left, or was removed.
    Removed,
    /// It is not in the table. It may have been admitted by an entry that this copy lacks.
    Unknown,
}

impl ClusterState {
    /// Return what a node that is not a member may see: the lineage, and that it is none of the members.
    pub fn for_outsiders(&self) -> Self {
        let (modules, authorities, authority_key) = Default::default();
        let (tokens, token_uses, staged, losses) = Default::default();
        Self { modules, tokens, token_uses, authorities, authority_key, staged, losses, ..self.clone() }
    }

    /// Return the standing of the node of a data directory.
    pub fn standing(&self, uid: NodeUid) -> Standing {
        match self.member_by_uid(uid) {
            None => Standing::Unknown,
            Some(member) if member.is_live() => Standing::Member(member.id),
            Some(_) => Standing::Removed,
        }
    }

    /// Return true if the node of a data directory may send messages in the name of a node. A node that this copy does
    /// not know can only be one that was admitted later, so its id, an index of the log, is higher than this copy's.
    pub fn speaks_for(&self, uid: NodeUid, node: NodeId) -> bool {
        match self.standing(uid) {
            Standing::Member(id) => id == node,
            Standing::Removed => false,
            Standing::Unknown => node.0 > self.applied && !self.members.contains_key(&node),
        }
    }

    /// Check a state that another node has sent, before anything relies on it. [`ClusterState::apply`] keeps these
    /// rules; bytes from the network need not.
    pub fn check_sound(&self) -> Result<(), String> {
        let ring = &self.ring;
        let size = usize::from(RingSize::get(ring.size));
        if ring.partitions.len() != size {
            return Err(format!("the ring has {} partitions instead of {size}", ring.partitions.len()));
        }
        if !(1..=super::MAX_WIDTH).contains(&self.width) {
            return Err(format!("the ring's width is {}", self.width));
        }
        for (id, partition) in ring.iter() {
            let pending = partition.pending.as_ref().map(|transfer| &transfer.target);
            for set in [&partition.replicas].into_iter().chain(pending) {
                let distinct = set.iter().enumerate().all(|(at, node)| !set[..at].contains(node));
                let known = set.iter().all(|node| self.members.contains_key(node));
                if set.is_empty() || set.len() > usize::from(super::MAX_WIDTH) || !distinct || !known {
                    return Err(format!("the replicas of partition {} are {set:?}", id.0));
                }
            }
        }
        if let Some((id, member)) = self.members.iter().find(|(id, member)| **id != member.id) {
            return Err(format!("node {} is listed as node {id}", member.id));
        }
        if let Some((uid, module)) = self.modules.iter().find(|(uid, module)| **uid != module.uid) {
            return Err(format!("module {} is listed as {uid}", module.uid));
        }
        Ok(())
    }
}

impl Lineage {
    /// Return true if another node may truthfully report this lineage to a node of lineage `own`: it is newer, and
    /// not by more recoveries than there can have been.
    pub fn may_follow(self, own: Self) -> bool {
        self > own && self.number - own.number <= PLAUSIBLE
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::{ClusterId, Digest};
    use crate::state::{Command, Machine, Member, MemberStatus};

    fn member(uid: u8) -> Member {
        Member {
            id: NodeId(0),
            uid: NodeUid([uid; 16]),
            name: format!("n{uid}@h"),
            listen: String::new(),
            http: String::new(),
            zone: None,
            weight: 1,
            status: MemberStatus::Joining,
            staged: false,
            banned: false,
            key: Some(Digest([uid; 32])),
        }
    }

    /// Return a state at index 4 with the founder (uid 1) and the removed node 3 (uid 2).
    fn state() -> ClusterState {
        let mut machine = Machine::default();
        let token = Digest([7; 32]);
        let log = [
            Command::Found {
                cluster: ClusterId([1; 16]),
                ring_size: RingSize::try_from(8).unwrap(),
                width: 3,
                founder: member(1),
                authority: String::new(),
                authority_key: String::new(),
                level: crate::version::LEVEL,
            },
            Command::IssueToken { token, now_ms: 0, expires_ms: 9, uses: None },
            Command::Admit { member: member(2), token, now_ms: 1 },
            Command::Removed { node: NodeId(3) },
        ];
        for (at, command) in log.iter().enumerate() {
            machine.apply(at as u64 + 1, command);
        }
        machine.state.unwrap()
    }

    #[test]
    fn a_node_speaks_for_itself_alone_and_a_removed_one_for_nobody() {
        let state = state();
        let uid = |number| NodeUid([number; 16]);
        assert_eq!(state.standing(uid(1)), Standing::Member(NodeId(0)));
        assert_eq!((state.standing(uid(2)), state.standing(uid(3))), (Standing::Removed, Standing::Unknown));
        assert!(state.speaks_for(uid(1), NodeId(0)) && !state.speaks_for(uid(1), NodeId(3)));
        assert!(!state.speaks_for(uid(2), NodeId(3)) && !state.speaks_for(uid(2), NodeId(0)));
        // An unknown node can be one that was admitted after this state, and no other.
        assert!(state.speaks_for(uid(3), NodeId(5)));
        for node in [0, 2, 3, 4] {
            assert!(!state.speaks_for(uid(3), NodeId(node)), "{node}");
        }
    }

    #[test]
    fn a_lineage_that_leaves_no_numbers_is_not_believed() {
        let lineage = |number, id| Lineage { number, id };
        let own = lineage(2, 5);
        assert!(lineage(2, 6).may_follow(own) && lineage(3, 0).may_follow(own));
        assert!(!own.may_follow(own) && !lineage(1, 9).may_follow(own));
        assert!(!lineage(u64::MAX, 1).may_follow(own) && !lineage(1 << 62, 0).may_follow(own));
    }

    #[test]
    fn a_state_that_breaks_a_rule_is_refused() {
        assert_eq!(state().check_sound(), Ok(()));
        type Spoil = fn(&mut ClusterState);
        let spoil: [(Spoil, &str); 6] = [
            (|state| drop(state.ring.partitions.pop()), "7 partitions instead of 8"),
            (|state| state.ring.partitions.clear(), "0 partitions"),
            (|state| state.ring.partitions[2].replicas.clear(), "partition 2"),
            (|state| state.ring.partitions[3].replicas.push(NodeId(9)), "partition 3"),
            (|state| state.width = 0, "width is 0"),
            (|state| state.members.get_mut(&NodeId(3)).unwrap().id = NodeId(4), "listed as node 3"),
        ];
        for (spoil, said) in spoil {
            let mut state = state();
            spoil(&mut state);
            let refused = state.check_sound().unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
