//! Links, connections over them, and streams in order.
//!
//! A link has two directions that are cut and healed each by itself. What is sent while its
//! direction is cut waits and comes when it is healed, unless the connection is given up
//! before: after a silence, by either side in its own time. Within a stream messages keep
//! their order; between streams they do not.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{At, Event, Message};
use crate::time::{MS, Time};
use crate::world::World;

/// Silence after which a connection is given up.
pub const SILENCE: Time = 800 * MS;

/// A connection between two runs of two nodes.
#[derive(Clone, Debug)]
pub struct Conn {
    pub ends: [At; 2],
    /// Does this end still count on it?
    pub open: [bool; 2],
}

impl Conn {
    fn side(&self, node: At) -> usize {
        usize::from(self.ends[0] != node)
    }

    pub fn is_open_at(&self, node: At) -> bool {
        self.open[self.side(node)]
    }

    pub fn other(&self, node: At) -> At {
        self.ends[1 - self.side(node)]
    }
}

/// The whole network.
#[derive(Default)]
pub struct Net {
    /// Directions that are cut, each with how many faults cut it.
    cuts: BTreeMap<(At, At), u32>,
    pub conns: Vec<Conn>,
    /// Which connection a node uses to another.
    current: BTreeMap<(At, At), usize>,
    held: BTreeMap<(At, At), Vec<Event>>,
    /// When the last message of a stream arrives: connection, sender, stream.
    last: BTreeMap<(usize, At, u64), Time>,
    /// Every delay is so many times as long.
    pub slowness: u64,
}

impl Net {
    /// Is this direction cut?
    pub fn is_cut(&self, from: At, to: At) -> bool {
        self.cuts.contains_key(&(from, to))
    }
}

impl World {
    /// Can two nodes talk, both ways, now?
    pub fn reach(&self, a: At, b: At) -> bool {
        let awake = |node: At| self.nodes[node].up && !self.nodes[node].paused;
        a == b || (awake(a) && awake(b) && !self.net.is_cut(a, b) && !self.net.is_cut(b, a))
    }

    /// The connection from one node to another, made if need be; `None`: it cannot be reached.
    pub fn connection(&mut self, from: At, to: At) -> Option<usize> {
        if let Some(conn) = self.net.current.get(&(from, to)) {
            return Some(*conn);
        }
        if !self.reach(from, to) || self.refuses(from, to) || self.refuses(to, from) {
            return None;
        }
        if let Some(old) = self.net.current.remove(&(to, from)) {
            // What came over the old one may still be read for a while.
            let late = self.random.below(100 * MS);
            self.notice(to, old, late);
        }
        let conn = self.net.conns.len();
        self.net.conns.push(Conn { ends: [from, to], open: [true, true] });
        self.net.current.insert((from, to), conn);
        self.net.current.insert((to, from), conn);
        Some(conn)
    }

    /// Does a node refuse another, by its own view: removed is removed, whatever it shows (R3)?
    /// One that has left is not: it is told by others that it has.
    pub fn refuses(&self, node: At, peer: At) -> bool {
        let uid = self.nodes[peer].uid;
        self.nodes[node].view.member_by_uid(uid).is_some_and(|member| member.banned)
    }

    /// Who is banned from now on is cut off (host: `Transport::set_banned`).
    pub fn drop_the_banned(&mut self, at: At) {
        for peer in 0..self.nodes.len() {
            if self.refuses(at, peer)
                && let Some(conn) = self.net.current.get(&(at, peer)).copied()
            {
                self.drop_connection(conn);
            }
        }
    }

    /// Sends over a connection; if that is gone, nothing is lost but the message.
    pub fn send(&mut self, conn: usize, from: At, message: Message) {
        if !self.net.conns[conn].is_open_at(from) {
            return;
        }
        self.count_message(from, &message);
        let to = self.net.conns[conn].other(from);
        let stream = match &message {
            Message::Call { .. } | Message::Answer { .. } => 1 + self.random.below(2),
            Message::ToReceiver { link, .. } | Message::ToSender { link, .. } | Message::Closed { link } => {
                16 + link
            }
            _ => 0,
        };
        let delay = self.delay();
        let last = self.net.last.entry((conn, from, stream)).or_default();
        let arrives = (self.now + delay).max(*last + 1);
        *last = arrives;
        self.queue.push(arrives, Event::Message { conn, from, to, message });
    }

    /// How long a message takes.
    pub fn delay(&mut self) -> Time {
        let tail = if self.random.percent(3) && !self.faultless { 40 * MS } else { 2 * MS };
        self.random.between(50, tail) * self.net.slowness.max(1)
    }

    /// A message arrives, if nothing is in its way.
    pub fn arrive(&mut self, conn: usize, from: At, to: At, message: Message) {
        if !self.net.conns[conn].is_open_at(to) || !self.nodes[to].up {
            return;
        }
        if self.net.is_cut(from, to) {
            self.net.held.entry((from, to)).or_default().push(Event::Message { conn, from, to, message });
            return;
        }
        if self.nodes[to].paused {
            self.nodes[to].backlog.push(Event::Message { conn, from, to, message });
            return;
        }
        self.note(format_args!("n{from} -> n{to} {}", message.name()));
        self.receive(conn, from, to, message);
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: At, to: At) {
        *self.net.cuts.entry((from, to)).or_default() += 1;
        self.fall_silent(|conn| conn.ends == [from, to] || conn.ends == [to, from]);
    }

    /// Takes back one cut of a direction.
    pub fn heal(&mut self, from: At, to: At) {
        let Some(cuts) = self.net.cuts.get_mut(&(from, to)) else { return };
        *cuts -= 1;
        if *cuts == 0 {
            self.net.cuts.remove(&(from, to));
            let held = self.net.held.remove(&(from, to)).unwrap_or_default();
            // What is sent from now on comes behind it.
            let until = self.now + MS + held.len() as Time;
            let conns = &self.net.conns;
            for ((conn, sender, _), last) in &mut self.net.last {
                if *sender == from && conns[*conn].other(from) == to {
                    *last = until.max(*last);
                }
            }
            for (place, event) in held.into_iter().enumerate() {
                self.queue.push(self.now + MS + place as Time, event);
            }
        }
    }

    /// Connections of which one end is not heard from are given up in a while.
    pub fn fall_silent(&mut self, which: impl Fn(&Conn) -> bool) {
        let silent: Vec<usize> = (0..self.net.conns.len())
            .filter(|conn| {
                let conn = &self.net.conns[*conn];
                (conn.open[0] || conn.open[1]) && which(conn)
            })
            .collect();
        for conn in silent {
            let wait = self.random.between(SILENCE, SILENCE + 200 * MS);
            self.queue.push(self.now + wait, Event::Silence { conn });
        }
    }

    /// Gives a connection up, if it is still silent.
    pub fn silence(&mut self, conn: usize) {
        let [a, b] = self.net.conns[conn].ends;
        let open = self.net.conns[conn].open;
        if !(open[0] && open[1] && self.reach(a, b)) {
            self.drop_connection(conn);
        }
    }

    /// Each end notices in its own time that a connection is gone.
    pub fn drop_connection(&mut self, conn: usize) {
        for node in self.net.conns[conn].ends {
            if self.net.conns[conn].is_open_at(node) {
                let late = self.random.below(200 * MS);
                self.notice(node, conn, late);
            }
        }
    }

    fn notice(&mut self, node: At, conn: usize, late: Time) {
        self.queue.push(self.now + late, Event::Lost { node, conn });
    }

    /// A node's end of a connection is closed; true if it was open until now.
    pub fn close_end(&mut self, node: At, conn: usize) -> bool {
        let side = self.net.conns[conn].side(node);
        let peer = self.net.conns[conn].other(node);
        if self.net.current.get(&(node, peer)) == Some(&conn) {
            self.net.current.remove(&(node, peer));
        }
        std::mem::replace(&mut self.net.conns[conn].open[side], false)
    }

    /// Every connection that a node counts on.
    pub fn connections_of(&self, node: At) -> BTreeSet<usize> {
        self.net.current.iter().filter(|((from, _), _)| *from == node).map(|(_, conn)| *conn).collect()
    }
}
