//! Failure detection (DESIGN.md D4): SWIM as a state machine without I/O or clock, whose random choices a seed
//! determines.
//!
//! The machine takes events and returns effects. The caller passes the time (since any origin, never decreasing),
//! carries datagrams, and calls again at [`Liveness::due`]. The same events with the same seed give the same effects,
//! byte for byte.
//!
//! The result is used to choose fallbacks and for display. It moves no ownership.
//!
//! # Protocol
//!
//! [`foca`] keeps the table: the generation and state of each member, suspicions, pending gossip, and a slow
//! random probe of all members. Two mechanisms are added. Random probes alone leave one dead node in a hundred
//! undetected for 5 periods in one of 150 cases; and foca probes one member at a time, so that a period short
//! enough for detection within 2 s is too short for a node that replies 300 ms late.
//!
//! - The *watch*: members form a ring, and each is pinged by the [`Settings::watched`] live members before it,
//!   concurrently and at a steady rate. Silence counts, not a single late reply. After [`Settings::doubt`] of
//!   silence, pings become more frequent and other members are asked to ping too (so that a link that works
//!   in one direction only, or one broken pair, takes no member down); after [`Settings::down`] the member is
//!   declared down. Down members are still pinged. A member that returns is noticed at once, learns that it
//!   was declared down, and refutes it with a higher generation.
//! - *Comparison*: pings carry a hash of the table. Tables that stay different are exchanged, for a node that
//!   slept or was partitioned while the gossip spread. A death that only a table reports is a suspicion, and
//!   is verified before it is believed, so that one side of a healed partition does not take the other side's
//!   members down by its outdated table.
//!
//! A node whose timers fire late was held up itself (stopped, or without processor time), and postpones all its
//! deadlines by the time lost. A node that receives no reply from any other is probably the one that is partitioned:
//! it treats the others as unreachable, and reports none of them as down to any node.
//!
//! # Figures
//!
//! See [`Settings::default`].

mod identity;
mod packet;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use foca::Timer;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::ids::{NodeId, NodeUid};

pub use identity::{Generation, Peer};
pub use packet::MAX_PACKET;
pub use settings::Settings;

use identity::Identity;
use packet::{Belief, ENTRIES, Entry, Packet, PingBody};
use table::Table;
use timers::Timers;
use watch::{Act, Watch};

/// Most indirect pings of other nodes that wait for a reply.
const MAX_ASKED: usize = 256;

/// Input of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time of [`Liveness::due`] has come.
    Time,
    /// A datagram of an authenticated node has arrived.
    Datagram {
        /// Sender.
        from: NodeUid,
        /// Contents; any bytes.
        bytes: Bytes,
    },
    /// The members of the committed state that are not removed and take part in failure detection, with or without
    /// this node. All other nodes are ignored.
    Members(Vec<Peer>),
    /// A connection to a node was opened.
    LinkUp(NodeUid),
    /// This node was held up for this long, and cannot have noticed it by its timers.
    HeldUp(Duration),
}

/// Output of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a datagram of at most [`MAX_PACKET`] bytes, once. It may be lost.
    Send {
        /// Receiver.
        to: NodeUid,
        /// Contents.
        bytes: Bytes,
    },
    /// A member is up from now on.
    Up(NodeId),
    /// A member is down from now on, or unreachable, which callers treat alike.
    Down(NodeId),
}

/// A node that has asked for an indirect ping.
struct Asker {
    origin: NodeUid,
    clock: u64,
    until: Duration,
}

/// The failure detector of one node.
pub struct Liveness {
    me: Peer,
    settings: Settings,
    now: Duration,
    /// Times of the watch's last and next round.
    looked: Duration,
    round: Duration,
    timers: Timers<Timer<Identity>>,
    /// foca's gossip timer, kept while no change is to be gossiped, because foca would set one for every period.
    gossip: Option<Timer<Identity>>,
    table: Table,
    watch: Watch,
    rng: StdRng,
    /// The askers by target; at most [`MAX_ASKED`] in all.
    asked: BTreeMap<NodeUid, Vec<Asker>>,
    up: BTreeSet<NodeId>,
    /// The table's hash when `up` was computed.
    reported: Option<u64>,
    effects: Vec<Effect>,
}

impl Liveness {
    /// Create a detector that knows no other node. `boot` is greater at each start of the node
    /// ([`Generation::boot`]); the seed determines all random choices.
    pub fn new(me: Peer, boot: u64, settings: Settings, seed: u64, now: Duration) -> Self {
        // The greatest generation is barred.
        let generation = Generation { boot: boot.min(u64::MAX - 1), renewed: 0 };
        Self {
            me,
            now,
            looked: now,
            round: now,
            timers: Timers::new(),
            gossip: None,
            table: Table::new(me, generation, &settings, seed),
            watch: Watch::new(),
            rng: StdRng::seed_from_u64(!seed),
            asked: BTreeMap::new(),
            up: BTreeSet::new(),
            reported: None,
            effects: Vec::new(),
            settings,
        }
    }

    /// Return the time of the next [`Event::Time`], unless another event comes before.
    pub fn due(&self) -> Duration {
        self.timers.next().map_or(self.round, |timer| timer.min(self.round))
    }

    /// Return true if a member is up. This node itself is always up.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.me.node || self.up.contains(&node)
    }

    /// Return the other members that are up.
    pub fn up(&self) -> impl Iterator<Item = NodeId> {
        self.up.iter().copied()
    }

    /// Return the current generation of this node.
    pub fn generation(&self) -> Generation {
        self.table.generation()
    }

    /// Handle an event, and return the resulting effects.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        self.now = now.max(self.now);
        let late = self.now.saturating_sub(self.due());
        if late >= self.settings.late {
            self.held_up(late);
        }
        match event {
            Event::Time => {}
            Event::Datagram { from, bytes } => self.receive(from, bytes),
            Event::Members(members) => {
                self.table.set_members(members);
                self.watch.set_members(self.me.uid, self.table.uids());
                self.asked.retain(|uid, _| self.table.peer(*uid).is_some());
            }
            Event::LinkUp(uid) => {
                self.watch.hurry(self.now, uid);
                if !self.table.is_up(uid) {
                    self.ping(uid);
                }
            }
            Event::HeldUp(lost) => self.held_up(lost),
        }
        self.pump();
        while let Some(timer) = self.timers.pop(self.now) {
            match timer {
                Timer::PeriodicGossip(_) if !self.table.has_news() => self.gossip = Some(timer),
                _ => self.table.timer(timer),
            }
            self.pump();
        }
        if self.round <= self.now {
            self.run_watch();
            self.pump();
        }
        // The next round must not be in the past, because the next call would then appear to be late.
        self.round = self.watch.next_round(self.looked, &self.table, &self.settings).max(self.now);
        self.report();
        std::mem::take(&mut self.effects)
    }

    fn held_up(&mut self, lost: Duration) {
        self.timers.shift(lost);
        self.round += lost;
        self.watch.shift(lost);
    }

    /// Run a round of the watch.
    fn run_watch(&mut self) {
        self.looked = self.now;
        for act in self.watch.round(self.now, &self.table, &self.settings, &mut self.rng) {
            match act {
                Act::Ping(uid) => self.ping(uid),
                Act::PingSuspected(uid, generation) => self.ping_with(uid, Belief::Down(generation)),
                Act::Ask { helper, target } => {
                    let clock = self.clock();
                    self.send(helper, &Packet::Ask { target, clock });
                }
                Act::Lost { target, quiet } => self.table.down(target, quiet),
                Act::CutOff => {
                    let all: Vec<_> = self.table.ups().collect();
                    all.into_iter().for_each(|uid| self.table.down(uid, true));
                }
                Act::Confirmed(uid, generation) => {
                    if let Some(peer) = self.table.peer(uid) {
                        self.table.learn(peer, generation, false);
                    }
                }
                Act::Compare(uid) => self.send_table(uid, true),
            }
        }
        let now = self.now;
        self.asked.retain(|_, askers| {
            askers.retain(|asker| asker.until > now);
            !askers.is_empty()
        });
    }

    fn receive(&mut self, from: NodeUid, bytes: Bytes) {
        let Some(peer) = self.table.peer(from) else { return };
        match Packet::decode(bytes) {
            None => {}
            Some(Packet::Swim(packet)) => self.table.receive(peer, &packet),
            Some(Packet::Ping(body)) => {
                self.on_claim(from, &body);
                let pong = self.body(from, body.clock, None);
                self.send(from, &Packet::Pong(pong));
                // Two members that watch each other ping at the same time, so that they share packets and wake-ups.
                if self.watch.hurry_along(self.now, from, &self.settings) {
                    self.round = self.now;
                }
            }
            Some(Packet::Pong(body)) => {
                let refuted = self.on_claim(from, &body);
                if self.is_fresh(body.clock) {
                    self.watch.heard(self.now, from);
                    self.watch.compared(self.now, from, body.table == self.table.hash());
                    self.tell_askers(from, body.mine);
                }
                if refuted {
                    // The peer learns of the new generation before it asks this node for anything else.
                    self.ping(from);
                }
            }
            Some(Packet::Ask { target, clock }) => self.ask(from, target, clock),
            Some(Packet::Heard { clock, .. }) if !self.is_fresh(clock) => {}
            Some(Packet::Heard { target, generation, .. }) => {
                self.lives(target, generation);
                self.watch.heard(self.now, target);
            }
            Some(Packet::Table { wants, entries }) => {
                entries.into_iter().for_each(|entry| self.learn(entry));
                if wants {
                    self.send_table(from, false);
                }
            }
        }
    }

    /// Handle a member's claims about itself and about this node. Return true if this node has refuted its own death.
    fn on_claim(&mut self, from: NodeUid, body: &PingBody) -> bool {
        let lonely = self.table.is_lonely();
        self.lives(from, body.mine);
        if lonely && !self.table.is_lonely() {
            // The first peer may know the others.
            self.send_table(from, true);
        }
        self.on_belief(body.yours)
    }

    /// Handle a peer's belief about this node. Return true if this node has refuted it with a higher generation.
    fn on_belief(&mut self, belief: Belief) -> bool {
        let mine = self.table.generation();
        let refuted = match belief {
            Belief::Down(known) => known >= mine,
            Belief::Alive(known) | Belief::Suspect(known, _) => known > mine,
            Belief::Unknown => false,
        };
        match belief {
            Belief::Down(known) | Belief::Alive(known) | Belief::Suspect(known, _) if refuted => {
                self.table.refute_down(known);
                self.watch.hurry_all(self.now);
            }
            Belief::Suspect(known, incarnation) if known == mine => self.table.refute_suspicion(incarnation),
            _ => {}
        }
        refuted
    }

    /// Record that a member is alive in a generation.
    fn lives(&mut self, uid: NodeUid, generation: Generation) {
        self.table.alive(uid, generation);
        self.watch.lives(uid, generation);
    }

    /// Handle an entry of a peer's table.
    fn learn(&mut self, entry: Entry) {
        if entry.node == self.me.node {
            let belief = if entry.up { Belief::Alive } else { Belief::Down };
            self.on_belief(belief(entry.generation));
            return;
        }
        let Some(uid) = self.table.uid(entry.node) else { return };
        let known = match self.table.belief(uid) {
            Belief::Unknown => None,
            Belief::Alive(known) | Belief::Suspect(known, _) | Belief::Down(known) => Some(known),
        };
        if !entry.up && self.table.is_up(uid) {
            if known.is_none_or(|known| known <= entry.generation) {
                self.watch.suspect(self.now, uid, entry.generation);
            }
        } else if known.is_none_or(|known| known < entry.generation) {
            self.table.learn(Peer { node: entry.node, uid }, entry.generation, entry.up);
        }
    }

    /// Ping a member on behalf of another.
    fn ask(&mut self, origin: NodeUid, target: NodeUid, clock: u64) {
        let waiting: usize = self.asked.values().map(Vec::len).sum();
        if target == self.me.uid || waiting >= MAX_ASKED || self.table.peer(target).is_none() {
            return;
        }
        let until = self.now + self.settings.down;
        let askers = self.asked.entry(target).or_default();
        askers.retain(|asker| asker.origin != origin);
        askers.push(Asker { origin, clock, until });
        self.ping(target);
    }

    fn tell_askers(&mut self, target: NodeUid, generation: Generation) {
        for asker in self.asked.remove(&target).unwrap_or_default() {
            self.send(asker.origin, &Packet::Heard { target, generation, clock: asker.clock });
        }
    }

    fn clock(&self) -> u64 {
        self.now.as_millis() as u64
    }

    /// Return true for a reply to a recent ping, not to one from before this node was stopped.
    fn is_fresh(&self, clock: u64) -> bool {
        let limit = self.settings.answer.as_millis() as u64;
        self.clock().checked_sub(clock).is_some_and(|age| age <= limit)
    }

    fn body(&self, to: NodeUid, clock: u64, belief: Option<Belief>) -> PingBody {
        let yours = belief.unwrap_or_else(|| self.table.belief(to));
        PingBody { clock, mine: self.table.generation(), yours, table: self.table.hash() }
    }

    fn ping(&mut self, to: NodeUid) {
        let body = self.body(to, self.clock(), None);
        self.send(to, &Packet::Ping(body));
    }

    fn ping_with(&mut self, to: NodeUid, belief: Belief) {
        let body = self.body(to, self.clock(), Some(belief));
        self.send(to, &Packet::Ping(body));
    }

    fn send_table(&mut self, to: NodeUid, wants: bool) {
        let entries = self.table.entries();
        let last = entries.len().saturating_sub(1) / ENTRIES;
        for (part, entries) in entries.chunks(ENTRIES).enumerate() {
            self.send(to, &Packet::Table { wants: wants && part == last, entries: entries.to_vec() });
        }
    }

    fn send(&mut self, to: NodeUid, packet: &Packet) {
        if self.table.peer(to).is_some() {
            self.effects.push(Effect::Send { to, bytes: packet.encode() });
        }
    }

    /// Carry out foca's requests.
    fn pump(&mut self) {
        while let Some((to, packet)) = self.table.next_packet() {
            self.send(to, &Packet::Swim(packet));
        }
        while let Some((after, timer)) = self.table.next_timer() {
            let at = self.now + after;
            let steady = matches!(timer, Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. });
            self.timers.at(if steady { self.settings.on_beat(at) } else { at }, timer);
        }
        if self.table.has_news()
            && let Some(gossip) = self.gossip.take()
        {
            self.timers.at(self.now, gossip);
        }
    }

    /// Report the members that are up or down since the last report.
    fn report(&mut self) {
        if self.reported == Some(self.table.hash()) {
            return;
        }
        self.reported = Some(self.table.hash());
        let up: BTreeSet<NodeId> =
            self.table.ups().filter_map(|uid| self.table.peer(uid)).map(|peer| peer.node).collect();
        if up != self.up {
            self.effects.extend(self.up.difference(&up).map(|node| Effect::Down(*node)));
            self.effects.extend(up.difference(&self.up).map(|node| Effect::Up(*node)));
            self.up = up;
        }
    }
}
