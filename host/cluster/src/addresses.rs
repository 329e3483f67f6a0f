//! Addresses of the nodes: those in the member table, and newer ones that nodes have announced.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use annulus_core::ids::{NodeId, NodeUid};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::view::Views;
use annulus_transport::PeerAddr;

/// Orders the announcements of one node: by its start, then by its changes of address since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Number of the node's start.
    pub start: u64,
    /// Number of changes of its address since the start.
    pub turn: u64,
}

/// An announced address of a node. Peers pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The node.
    pub uid: NodeUid,
    /// Its address.
    pub addr: SocketAddr,
    /// Its order among the node's announcements.
    pub stamp: Stamp,
}

/// An announcement, with the node's address in the member table at that time.
struct Announced {
    addr: SocketAddr,
    stamp: Stamp,
    /// Once the table has another address, the table is the newer of the two: every node sees the table, and
    /// may miss an announcement.
    instead_of: String,
}

/// The addresses of all members.
pub struct AddressBook {
    views: Arc<Views>,
    /// The announcements of members only.
    announced: Mutex<BTreeMap<NodeUid, Announced>>,
}

impl AddressBook {
    /// Create a book without announcements. The views are the source of the member table.
    pub fn new(views: Arc<Views>) -> Self {
        Self { views, announced: Mutex::default() }
    }

    /// Return the address of a node, even of a removed one, which must learn of its removal.
    pub fn peer(&self, node: NodeId) -> Option<PeerAddr> {
        let view = self.views.load();
        let member = view.state.members.get(&node)?;
        let announced = self.announced.lock();
        let announced = announced.get(&member.uid).filter(|known| known.instead_of == member.listen);
        // Nodes write resolved addresses. Any other text in the table cannot be used.
        let addr = announced.map_or_else(|| member.listen.parse().ok(), |known| Some(known.addr))?;
        Some(PeerAddr { uid: member.uid, addr })
    }

    /// Record a node's announcement of its address. An announcement without a stamp, from an older build, is
    /// accepted. Return true if the address has changed.
    pub fn announce(&self, uid: NodeUid, addr: SocketAddr, stamp: Option<Stamp>) -> bool {
        let before = self.announced.lock().get(&uid).map(|known| known.stamp).unwrap_or_default();
        self.enter(Sighting { uid, addr, stamp: stamp.unwrap_or(before) })
    }

    /// Record an announcement that a peer has passed on. Return true if the address has changed.
    pub fn hear(&self, sighting: Sighting) -> bool {
        let older = |known: &Announced| known.stamp >= sighting.stamp;
        if self.announced.lock().get(&sighting.uid).is_some_and(older) {
            return false;
        }
        self.enter(sighting)
    }

    /// Return all announcements, to be passed on.
    pub fn sightings(&self) -> Vec<Sighting> {
        let announced = self.announced.lock();
        let sighting = |(uid, known): (&NodeUid, &Announced)| Sighting {
            uid: *uid,
            addr: known.addr,
            stamp: known.stamp,
        };
        announced.iter().map(sighting).collect()
    }

    fn enter(&self, Sighting { uid, addr, stamp }: Sighting) -> bool {
        let view = self.views.load();
        // Members only, so that the book is bounded.
        let Some(member) = view.state.member_by_uid(uid) else { return false };
        let before = self.peer(member.id).map(|peer| peer.addr);
        let entry = Announced { addr, stamp, instead_of: member.listen.clone() };
        self.announced.lock().insert(uid, entry);
        before != Some(addr)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use annulus_core::ids::{ClusterId, Digest};
    use annulus_core::keyspace::RingSize;
    use annulus_core::state::{Command, Machine, Member, MemberStatus};

    use super::*;

    fn member(uid: u8) -> Member {
        Member {
            id: NodeId(0),
            uid: NodeUid([uid; 16]),
            name: format!("n{uid}"),
            listen: "127.0.0.1:1".into(),
            http: String::new(),
            zone: None,
            weight: 1,
            status: MemberStatus::Member,
            staged: false,
            banned: false,
            key: Some(Digest([uid; 32])),
        }
    }

    /// Create the address book of the first of two members. The second is node 3.
    fn book() -> (Machine, Arc<Views>, AddressBook) {
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
        ];
        for (at, command) in log.iter().enumerate() {
            machine.apply(at as u64 + 1, command);
        }
        let views = Arc::new(Views::new(machine.state.clone().unwrap(), NodeId(0)));
        (machine, views.clone(), AddressBook::new(views))
    }

    const NODE: NodeId = NodeId(3);
    const UID: NodeUid = NodeUid([2; 16]);

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn seen(port: u16, start: u64, turn: u64) -> Sighting {
        Sighting { uid: UID, addr: at(port), stamp: Stamp { start, turn } }
    }

    #[test]
    fn a_peer_that_missed_a_later_word_follows_the_member_table() {
        let (mut machine, views, book) = book();
        let mut moved = |index, port| {
            let listen = at(port).to_string();
            machine.apply(index, &Command::Moved { node: NODE, listen, http: String::new() });
            views.offer(machine.state.as_ref().unwrap());
        };
        let port = || book.peer(NODE).unwrap().addr.port();
        assert_eq!(port(), 1);
        assert!(book.announce(UID, at(2), Some(Stamp { start: 2, turn: 0 })));
        assert_eq!(port(), 2, "announced, before the table has it");
        moved(4, 2);
        assert_eq!(port(), 2);
        // The node moved again, and its announcement did not arrive here.
        moved(5, 3);
        assert_eq!(port(), 3);
    }

    #[test]
    fn a_passed_on_address_is_ordered_by_the_nodes_own_stamp() {
        let (_, _, book) = book();
        let port = || book.peer(NODE).unwrap().addr.port();
        assert!(book.hear(seen(5, 2, 0)));
        assert!(!book.hear(seen(4, 1, 9)) && !book.hear(seen(6, 2, 0)), "older, or from the same time");
        assert_eq!(port(), 5);
        assert!(book.hear(seen(7, 2, 1)));
        assert!(!book.hear(seen(7, 3, 0)), "newer, and the same address");
        assert_eq!((port(), book.sightings()), (7, vec![seen(7, 3, 0)]));
        // The node's announcement is accepted, even if its build sends no stamp.
        assert!(book.announce(UID, at(8), None));
        assert_eq!(port(), 8);
        let stranger = Sighting { uid: NodeUid([9; 16]), ..seen(1, 1, 1) };
        assert!(!book.hear(stranger) && book.sightings().len() == 1);
    }
}
