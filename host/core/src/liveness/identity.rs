//! Identities of members in SWIM.

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, NodeUid};

/// A member of the committed state. Datagrams are addressed by the id of its data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Its id in Raft and in the ring.
    pub node: NodeId,
    /// Its id in the transport.
    pub uid: NodeUid,
}

/// Generation of a node. A restart and a refutation of the node's own death each start a new one. A greater
/// generation wins over all reports about smaller ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation {
    /// Greater at each start of the node, such as milliseconds since 1970. Otherwise a peer that remembers a greater
    /// one reports it, and the node continues from that one.
    pub boot: u64,
    /// Number of refutations since the start.
    pub renewed: u32,
}

impl Generation {
    /// A generation that no node can have. Reports about a node that is barred with it are never believed again.
    pub(super) const BARRED: Self = Self { boot: u64::MAX, renewed: u32::MAX };

    /// Return the next generation without a restart.
    pub(super) fn next(self) -> Self {
        Self { renewed: self.renewed.saturating_add(1), ..self }
    }
}

/// A member with its generation. About 25 bytes in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub uid: [u8; 16],
    pub node: u64,
    pub generation: Generation,
}

impl Identity {
    pub(super) fn new(peer: Peer, generation: Generation) -> Self {
        Self { uid: peer.uid.0, node: peer.node.0, generation }
    }

    pub(super) fn peer(&self) -> Peer {
        Peer { node: NodeId(self.node), uid: NodeUid(self.uid) }
    }
}

impl foca::Identity for Identity {
    type Addr = [u8; 16];

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation.next(), ..*self })
    }

    fn addr(&self) -> [u8; 16] {
        self.uid
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        // Of two ids with one data directory the greater was admitted later.
        (self.node, self.generation) > (adversary.node, adversary.generation)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use foca::Identity as _;

    use super::*;

    #[test]
    fn a_restart_and_a_renewal_win_over_earlier_generations() {
        let peer = Peer { node: NodeId(3), uid: NodeUid([7; 16]) };
        let first = Identity::new(peer, Generation { boot: 5, renewed: 9 });
        let renewed = first.renew().unwrap();
        let restarted = Identity::new(peer, Generation { boot: 6, renewed: 0 });
        assert!(renewed.win_addr_conflict(&first) && !first.win_addr_conflict(&renewed));
        assert!(restarted.win_addr_conflict(&renewed) && !renewed.win_addr_conflict(&restarted));
        assert_eq!(renewed.peer(), peer);
    }
}
