//! Where the nodes are: the member table, and what nodes that moved have said of themselves and the table
//! does not say yet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use annulus_core::ids::{NodeId, NodeUid};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::view::Views;
use annulus_transport::PeerAddr;

/// Orders what one node says of its address: by its start, then by how often it has changed since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Number of the node's start.
    pub start: u64,
    /// Changes of the address since.
    pub turn: u64,
}

/// Where a node has said that it is. Told on by whoever has heard it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Which node.
    pub uid: NodeUid,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// When it said so.
    pub stamp: Stamp,
}

/// What a node has said, and what the member table said of it then.
struct Said {
    addr: SocketAddr,
    stamp: Stamp,
    /// Once the table says something else, it is the newer of the two: a node that moves again is in the
    /// table for everybody, while its word may have been missed here.
    instead_of: String,
}

/// The addresses of all members.
pub struct AddressBook {
    views: Arc<Views>,
    said: Mutex<BTreeMap<NodeUid, Said>>,
}

impl AddressBook {
    /// The addresses of a view.
    pub fn new(views: Arc<Views>) -> Self {
        Self { views, said: Mutex::default() }
    }

    /// How to reach a node. A removed one too: it is to hear that it was.
    pub fn peer(&self, node: NodeId) -> Option<PeerAddr> {
        let view = self.views.load();
        let member = view.state.members.get(&node)?;
        let said = self.said.lock();
        let said = said.get(&member.uid).filter(|said| said.instead_of == member.listen);
        // Nodes write resolved addresses; anything else in the table is of no use to anybody.
        let addr = said.map_or_else(|| member.listen.parse().ok(), |said| Some(said.addr))?;
        Some(PeerAddr { uid: member.uid, addr })
    }

    /// A node itself says where it is; builds that do not stamp what they say are believed. True if that
    /// is another address than was known.
    pub fn announce(&self, uid: NodeUid, addr: SocketAddr, stamp: Option<Stamp>) -> bool {
        let before = self.said.lock().get(&uid).map(|said| said.stamp).unwrap_or_default();
        self.enter(Sighting { uid, addr, stamp: stamp.unwrap_or(before) })
    }

    /// Somebody tells where a node has said that it is. True if that is news.
    pub fn hear(&self, sighting: Sighting) -> bool {
        let older = |said: &Said| said.stamp >= sighting.stamp;
        if self.said.lock().get(&sighting.uid).is_some_and(older) {
            return false;
        }
        self.enter(sighting)
    }

    /// All that nodes have said, to be told on.
    pub fn sightings(&self) -> Vec<Sighting> {
        let said = self.said.lock();
        said.iter().map(|(uid, said)| Sighting { uid: *uid, addr: said.addr, stamp: said.stamp }).collect()
    }

    fn enter(&self, Sighting { uid, addr, stamp }: Sighting) -> bool {
        let view = self.views.load();
        // Of members only, so that the book has an end.
        let Some(member) = view.state.member_by_uid(uid) else { return false };
        let before = self.peer(member.id).map(|peer| peer.addr);
        let said = Said { addr, stamp, instead_of: member.listen.clone() };
        self.said.lock().insert(uid, said);
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
        }
    }

    /// Two members, as the first sees them; the second is node 3.
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
            Command::IssueToken { token, now_ms: 0, expires_ms: 9 },
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
        assert_eq!(port(), 2, "what it said, before the table has it");
        moved(4, 2);
        assert_eq!(port(), 2);
        // It moved again, and its word did not come here.
        moved(5, 3);
        assert_eq!(port(), 3);
    }

    #[test]
    fn what_is_told_on_counts_by_when_the_node_said_it() {
        let (_, _, book) = book();
        let port = || book.peer(NODE).unwrap().addr.port();
        assert!(book.hear(seen(5, 2, 0)));
        assert!(!book.hear(seen(4, 1, 9)) && !book.hear(seen(6, 2, 0)), "older, or of the same time");
        assert_eq!(port(), 5);
        assert!(book.hear(seen(7, 2, 1)));
        assert!(!book.hear(seen(7, 3, 0)), "newer, and the same address");
        assert_eq!((port(), book.sightings()), (7, vec![seen(7, 3, 0)]));
        // The node itself is believed, also of a build that says no time.
        assert!(book.announce(UID, at(8), None));
        assert_eq!(port(), 8);
        let stranger = Sighting { uid: NodeUid([9; 16]), ..seen(1, 1, 1) };
        assert!(!book.hear(stranger) && book.sightings().len() == 1);
    }
}
